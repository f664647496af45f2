"""One figure of few labels from several runs of `igpt probe --labels-per-class`, and the margins.

    python benchmarks/few_labels.py few-fashion few-fashion-1000 --out few-labels.png

Each folder is the --out of a probe; they must name the same methods. Prints by how much the first
method is above each of the others with the same labels: mean and deviation over the subsets, and on
how many of them it is above.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from igpt.config import METRICS
from igpt.disk import read_json
from igpt.plots.curves import few_labels_figure, save_figure
from igpt.study.outcomes import Summary


def margins(outcomes: list[dict[str, Any]], metric: str) -> str:
    """Markdown: a row a method, a column a number of labels."""
    methods = list(dict.fromkeys(row["method"] for row in outcomes))
    sizes = list(dict.fromkeys(row["labels_per_class"] for row in outcomes))
    value = {(r["method"], r["labels_per_class"], r["seed"]): r[metric] for r in outcomes}
    lines = [
        f"| {methods[0]} less | {' | '.join(str(size or 'all') for size in sizes)} |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for method in methods[1:]:
        cells = []
        for size in sizes:
            seeds = [s for name, labels, s in value if (name, labels) == (method, size)]
            leads = [value[methods[0], size, s] - value[method, size, s] for s in seeds]
            lead = 100 * np.array(leads)
            spread = f" ± {lead.std(ddof=1):.1f}" if len(lead) > 1 else ""
            cells.append(f"{lead.mean():.1f}{spread} ({(lead > 0).sum()} of {len(lead)})")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--metric", choices=METRICS, default="accuracy")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = [read_json(folder / "results.json") for folder in args.folders]
    rows = [row for result in results for row in result["summaries"]]
    for row in rows:
        row |= {metric: tuple(row[metric]) for metric in METRICS}
    summaries = [Summary(**row) for row in rows]
    save_figure(few_labels_figure(summaries, args.metric), args.out)
    print(margins([row for result in results for row in result["outcomes"]], args.metric))


if __name__ == "__main__":
    main()
