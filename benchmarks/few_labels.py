"""One figure of few labels from several runs of `igpt probe --labels-per-class`.

    python benchmarks/few_labels.py few-fashion few-fashion-1000 --out few-labels.png

Each folder is the --out of a probe; they must name the same methods.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from igpt.disk import read_json
from igpt.plots import few_labels_figure, save_figure
from igpt.study import Summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [
        row for folder in args.folders for row in read_json(folder / "results.json")["summaries"]
    ]
    for row in rows:
        row["accuracy"], row["balanced_accuracy"] = map(
            tuple, (row["accuracy"], row["balanced_accuracy"])
        )
    summaries = [Summary(**row) for row in rows]
    save_figure(few_labels_figure(summaries, args.metric), args.out)


if __name__ == "__main__":
    main()
