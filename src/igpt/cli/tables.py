"""What a probe reached, as the terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igpt.probe.linear import FittedProbe
    from igpt.study import Subset, Summary


def probe_text(
    metric: str, fitted: FittedProbe, subset: Subset, summaries: Sequence[Summary], folder: Path
) -> str:
    """The metric of each layer on validation; accuracies by method and labels a class on test."""
    layers = [
        f"  {layer:>5}  {100 * value:5.1f}{'  <- chosen' if layer == fitted.layer else ''}"
        for layer, value in fitted.by_layer.items()
    ]
    rows = [
        f"  {'all' if row.labels_per_class is None else row.labels_per_class:>5}  "
        f"{_percent(row.accuracy, row.seeds)}  {_percent(row.balanced_accuracy, row.seeds)}  "
        f"{row.method}"
        for row in summaries
    ]
    return "\n".join(
        [
            f"  layer  {metric.replace('_', ' ')} on validation, %{_of(subset, summaries)}",
            *layers,
            "",
            "  labels a class, accuracy on test, balanced accuracy, %",
            *rows,
            "",
            f"probe, figures and results.json: {folder}",
        ]
    )


def _of(subset: Subset, summaries: Sequence[Summary]) -> str:
    """The subset of labels that the table by layer is for, where there are several subsets."""
    if len({summary.labels_per_class for summary in summaries}) == 1 and summaries[0].seeds == 1:
        return ""
    size = "all labels" if subset.per_class is None else f"{subset.per_class} labels a class"
    return f" ({size}, seed {subset.seed})"


def _percent(spread: tuple[float, float], seeds: int) -> str:
    mean, deviation = (100 * value for value in spread)
    return f"{mean:5.1f} ± {deviation:3.1f}" if seeds > 1 else f"{mean:5.1f}      "
