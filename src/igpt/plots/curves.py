"""Curves, bars and matrices by matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from igpt.disk import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from igpt.study.outcomes import Summary
    from igpt.sweep import Result

# Okabe and Ito's colours, told apart by the colour-blind.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
LAYER_TICKS = 25  # layers whose numbers fit below a figure
DODGE = 1.04  # factor on x from each method to the next, so that none hides another
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#D55E00", "#56B4E9", GREY)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all; UserError when it cannot be written."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def loss_figure(
    rows: Sequence[Mapping[str, Any]], references: Mapping[str, float] | None = None
) -> Figure:
    """Training and validation loss of a run's metric rows.

    In nats a pixel; for a fine-tuning, the sum of its losses, and its validation metric in %.
    `references` are levels to compare with, by name.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]
    if train:
        steps, losses = np.array(train, dtype=float).T
        axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smooth(losses), color=BLUE, label="training")
    if held_out:
        steps, losses = np.array(held_out, dtype=float).T
        axes.plot(steps, losses, color=ORANGE, marker="o", markersize=4, label="held out")
    levels = sorted((references or {}).items(), key=lambda item: -item[1])
    for i, (name, level) in enumerate(levels):
        axes.axhline(level, color=GREY, linestyle="--", linewidth=1)
        # The highest is named above its line and the others below theirs: they may be close.
        axes.annotate(
            name,
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3 if i == 0 else -3),
            textcoords="offset points",
            ha="right",
            va="bottom" if i == 0 else "top",
            fontsize=9,
            color="#555555",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    metric = next((key for row in rows for key in row if key.startswith("val_")), "val_loss")
    axes.set_ylabel("nats / pixel" if metric == "val_loss" else "loss")
    if metric != "val_loss":
        _draw_metric(axes, [(r["step"], r[metric]) for r in rows if metric in r], metric)
    if train or held_out:
        axes.legend(frameon=False, loc="lower left" if references else "best")
    return figure


def _draw_metric(axes: Axes, values: Sequence[tuple[int, float]], name: str) -> None:
    """The metric that a fine-tuning's best weights are chosen by, on an axis of its own."""
    steps, heights = np.array(values, dtype=float).T
    right = axes.twinx()
    right.plot(steps, 100 * heights, color=ORANGE, marker="o", markersize=4)
    right.set_ylabel(
        f"{name.removeprefix('val_').replace('_', ' ')} on validation, %", color=ORANGE
    )
    right.spines[["top", "left"]].set_visible(False)


def layers_figure(by_layer: Mapping[str, float], metric: str) -> Figure:
    """Validation `metric`, 0 to 1, of a probe at each layer."""
    figure, axes = _figure()
    percent = [100 * value for value in by_layer.values()]
    axes.plot(percent, color=BLUE, marker="o", markersize=4)
    best = int(np.argmax(percent))
    axes.plot([best], [percent[best]], color=ORANGE, marker="o", markersize=8)
    axes.annotate(
        f"{percent[best]:.1f}",
        (best, percent[best]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
    )
    axes.margins(y=0.12)  # for the number above the best
    every = -(-len(by_layer) // LAYER_TICKS)
    axes.set_xticks(range(0, len(by_layer), every), list(by_layer)[::every])
    axes.set_xlabel("layer")
    axes.set_ylabel(f"{metric.replace('_', ' ')} of a probe on validation, %")
    return figure


def few_labels_figure(summaries: Sequence[Summary], metric: str) -> Figure:
    """Test metric of every method against labels per class, mean and deviation."""
    figure, axes = _figure()
    methods = list(dict.fromkeys(row.method for row in summaries))
    sizes = [row.labels_per_class for row in summaries if row.labels_per_class is not None]
    for place, (method, color) in enumerate(zip(methods, itertools.cycle(CYCLE))):
        rows = [row for row in summaries if row.method == method]
        # "All labels" is drawn to the right of the numbers, at ten times the largest.
        x = [10 * max(sizes, default=1) if r.labels_per_class is None else r.labels_per_class
             for r in rows]  # fmt: skip
        x = [size * DODGE ** (place - (len(methods) - 1) / 2) for size in x]
        means, spreads = np.array([getattr(row, metric) for row in rows]).T * 100
        axes.errorbar(x, means, spreads, color=color, marker="o", markersize=3, label=method,
                      linewidth=2 if method == methods[0] else 1, capsize=2)  # fmt: skip
    axes.set_xscale("log")
    ticks = sorted(set(sizes))
    labels = [str(tick) for tick in ticks]
    if any(row.labels_per_class is None for row in summaries):
        ticks, labels = [*ticks, 10 * max(sizes, default=1)], [*labels, "all"]
    axes.set_xticks(ticks, labels)
    axes.minorticks_off()
    axes.set_xlabel("labels per class")
    axes.set_ylabel(f"{metric.replace('_', ' ')} on test, %")
    axes.legend(frameon=False, fontsize=8)
    return figure


def sweep_figure(results: Sequence[Result]) -> Figure:
    """Test accuracy, where there is one, and nats a picture against training FLOPs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    probed = [result for result in results if result.accuracy is not None]
    accuracies = [100 * (row.accuracy or 0) for row in probed]
    spreads = [100 * (row.accuracy_deviation or 0) for row in probed]
    nats = [row.test_nats_per_picture for row in results]
    panels = [
        ("accuracy of a probe on test, %", probed, accuracies, spreads),
        ("nats / picture on test", results, nats, [0.0] * len(results)),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(5.6 * len(panels), 4.4), layout="constrained")
    parts = [part.partition("=") for part in results[0].name.split(",")]
    figure.suptitle(f"points: {', '.join(name for name, _, _ in parts)}", fontsize=9)
    for place, (title, rows, heights, errors) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee")
        # Names alternate sides, since points of almost the same cost stand above each other.
        for turn, i in enumerate(np.argsort(heights)):
            point, side = (rows[i].flops, heights[i]), (1, -1)[turn % 2]
            axes.errorbar(*point, errors[i] or None, color=BLUE, marker="o", capsize=2)
            values = [part.partition("=")[2] for part in rows[i].name.split(",")]
            axes.annotate(", ".join(values), point, xytext=(6 * side, 0), va="center", fontsize=8,
                          ha="left" if side > 0 else "right",
                          textcoords="offset points")  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.1)
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel(title)
    axes = figure.axes[-1]
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())  # writes 20, not a power of ten
    axes.yaxis.set_minor_formatter(LogFormatter())
    return figure


def confusion_figure(confusion: npt.NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Share of each true class (rows) that was taken for each class (columns)."""
    from matplotlib.figure import Figure

    n, most = len(class_names), 30  # classes whose names and numbers can be read
    side = max(4.0, 0.45 * min(n, most) + 2)  # inches
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if n <= most:
        for i, j in np.argwhere(confusion > 0):
            ink = "white" if share[i, j] > 0.5 else "#333333"
            axes.text(j, i, str(confusion[i, j]), ha="center", va="center", fontsize=7, color=ink)
        names = [as_plain(name) for name in class_names]
        axes.set_xticks(range(n), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def as_plain(name: str) -> str:
    """A name as matplotlib draws it letter by letter, which takes `$...$` for a formula."""
    return name.replace("$", r"\$")


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    return figure, axes


def _smooth(values: npt.NDArray[np.float64], reach: int = 5) -> npt.NDArray[np.float64]:
    """The mean of each value and its neighbours: `reach` on either side, or fewer near the ends.

    As many on both sides: a window that is not centred would show the loss of other steps.
    """
    sums = np.cumsum(np.concatenate(([0.0], values)))
    place = np.arange(len(values))
    arm = np.minimum(np.minimum(place, place[::-1]), reach)
    return np.asarray((sums[place + arm + 1] - sums[place - arm]) / (2 * arm + 1))
