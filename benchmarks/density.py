"""Better density, better features? Probe accuracy against held-out nats/pixel (paper, figure 3).

python benchmarks/density.py RUN... [--data D] [--labels-per-class 100] [--pool mean] --out density

Every run is probed at each layer with the same labels, five subsets of them, and scored on its
validation pictures. Writes density.json, density.png, and density-layers.png: where the knowledge
is. Runs measured already are not measured again, so that the campaign may be interrupted. Runs
called NAME-stepN are drawn as a line that ends in NAME.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from finetuning import say
from matplotlib.figure import Figure

from igpt.cli.arguments import add_data, run_data
from igpt.config import METRICS
from igpt.disk import write_text
from igpt.order import Encoded
from igpt.pipeline import load
from igpt.plots.curves import CYCLE, save_figure
from igpt.study.methods import LinearMethod, ModelFeatures, Subset, needed_pictures
from igpt.study.outcomes import subsets, summarise, try_method

SEEDS, TESTED = 5, 2_000  # subsets of labels; first test pictures


def probing(
    run: Path, args: argparse.Namespace
) -> tuple[ModelFeatures, LinearMethod, list[Subset]]:
    """The features of every layer, a probe that chooses one, and the labels that it learns from."""
    pipeline = load(run)
    args.run, args.split = run, None
    task = run_data(args).task(pipeline.image_size)
    task = replace(task, test=task.test.select(np.arange(min(TESTED, len(task.test)))))
    chosen = subsets(task, [args.labels_per_class], SEEDS)
    features = ModelFeatures(pipeline, ["all"], args.pool, "auto")
    needed = needed_pictures(task, chosen)
    linear = LinearMethod("probe", features, task, needed, components=None, metric=args.metric)
    return features, linear, chosen


def add_probing(parser: argparse.ArgumentParser) -> None:
    """The arguments of `probing`."""
    add_data(parser, limit=None)
    parser.add_argument("--labels-per-class", type=int, default=100)
    parser.add_argument("--pool", default="mean")
    parser.add_argument("--metric", choices=METRICS, default="accuracy", help="chosen and drawn by")


def measure(run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Nats/pixel on validation, and the probe's accuracy at its best layer on test."""
    features, linear, chosen = probing(run, args)
    trials = try_method(linear, chosen, say)
    (summary,) = summarise(trials)
    pipeline = features.pipeline
    validation = Encoded(pipeline.codec.raster_tokens(linear.task.validation.images))
    layers = [trial.fit.probe.by_layer for trial in trials if trial.fit.probe]
    return {
        "nats_per_pixel": pipeline.likelihood(validation, precision="auto").nats_per_pixel,
        "accuracy": summary.accuracy,
        "balanced_accuracy": summary.balanced_accuracy,
        "layer": trials[0].fit.layer,
        # on validation, of every subset
        "by_layer": {name: [one[name] for one in layers] for name in layers[0]},
        "objective": pipeline.model.config.objective,
        "parameters": sum(p.numel() for p in pipeline.model.parameters()),
    }


def draw(results: dict[str, Any], metric: str) -> Figure:
    figure = Figure(figsize=(7.8, 4.2), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for name, result in results.items():
        match = re.fullmatch(r"(.*)-step(\d+)", name)
        base, step = (match[1], int(match[2])) if match else (name, sys.maxsize)
        lines.setdefault(base, []).append((step, result))
    for (base, points), color in zip(lines.items(), itertools.cycle(CYCLE)):
        points.sort(key=lambda point: point[0])
        x = [result["nats_per_pixel"] for _, result in points]
        y, error = np.array([result[metric] for _, result in points]).T * 100
        axes.errorbar(x, y, error, color=color, marker=".", linewidth=1, capsize=2)
        masked = points[-1][1]["objective"] == "bert"
        axes.plot(x[-1:], y[-1:], color=color, marker="s" if masked else "o", linestyle="",
                  label=f"{base} (of hidden pixels)" if masked else base)  # fmt: skip
    axes.invert_xaxis()
    axes.set_xlabel("validation nats/pixel (better to the right)")
    axes.set_ylabel(f"probe on test, {metric.replace('_', ' ')}, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_layers(results: dict[str, Any], axis: str) -> Figure:
    """The probe on validation, as `axis` says, against depth: a line a run, dashed for BERT."""
    figure = Figure(figsize=(7.8, 4.2), layout="constrained")
    axes = figure.subplots()
    whole = {name: row for name, row in results.items() if not re.search(r"-step\d+$", name)}
    for (name, row), color in zip(whole.items(), itertools.cycle(CYCLE)):
        accuracies = 100 * np.mean(list(row["by_layer"].values()), axis=1)  # of layers 0 to L
        depth, best = np.linspace(0, 1, len(accuracies)), int(np.argmax(accuracies))
        style = "--" if row["objective"] == "bert" else "-"
        axes.plot(depth, accuracies, style, color=color, marker=".", linewidth=1, label=name)
        axes.plot(depth[best], accuracies[best], color=color, marker="o", markersize=8)
    axes.set_xlabel("layer, of the model's depth (the best one is marked)")
    axes.set_ylabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def best_over_last(row: dict[str, Any]) -> str:
    """The best layer, and by how much it is above the last one, subset by subset.

    In brackets: the lead on each subset of the layer that is best on the others. The first lead is
    measured by what chose the layer, so it cannot be below zero.
    """
    layers = 100 * np.array(list(row["by_layer"].values()))  # [L + 1, subsets]
    over_last = layers - layers[-1]
    best = int(np.argmax(layers.mean(axis=1)))
    others = [int(np.argmax(np.delete(layers, s, axis=1).mean(axis=1))) for s in range(SEEDS)]
    lead, unbiased = over_last[best], over_last[others, range(SEEDS)]
    return (
        f"layer {best}, {lead.mean():.1f} ± {lead.std(ddof=1):.1f} above the last "
        f"({unbiased.mean():.1f} ± {unbiased.std(ddof=1):.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    add_probing(parser)
    parser.add_argument("--out", type=Path, default=Path("density"))
    args = parser.parse_args()
    saved = args.out.with_suffix(".json")
    results = json.loads(saved.read_text()) if saved.exists() else {}
    for run in args.runs:
        if run.name not in results:
            results[run.name] = measure(run, args)
            write_text(saved, json.dumps(results, indent=2) + "\n")
        row = results[run.name]
        plain, balanced = (
            f"{100 * mean:.1f} ± {100 * deviation:.1f}"
            for mean, deviation in (row["accuracy"], row["balanced_accuracy"])
        )
        print(f"{row['nats_per_pixel']:.4f}  {plain}  balanced {balanced}  {best_over_last(row)}  "
              f"{row['parameters']:,}  {run.name}", flush=True)  # fmt: skip
        layers = 100 * np.array(list(row["by_layer"].values()))  # [L + 1, subsets]
        means = " ".join(f"{mean:.1f}" for mean in layers.mean(axis=1))
        deviations = layers.std(axis=1, ddof=1)
        print(f"        validation by layer: {means} (each ± {deviations.min():.1f} to "
              f"{deviations.max():.1f})", flush=True)  # fmt: skip
    save_figure(draw(results, args.metric), args.out.with_suffix(".png"))
    axis = f"probe on validation, {args.metric.replace('_', ' ')}, %"
    by_layer = args.out.with_name(f"{args.out.name}-layers.png")
    save_figure(draw_layers(results, axis), by_layer)


if __name__ == "__main__":
    main()
