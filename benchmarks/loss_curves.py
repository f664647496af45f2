"""Does bfloat16 on the kernels train as float32 does? The same data and seeds, two precisions.

    python benchmarks/loss_curves.py fashion-mnist --data ../shared/data/fashion_mnist \
        --seeds 3 --out runs/curves train.steps=1000

For every seed one run in float32 on the plain road (IGPT_KERNELS=0) and one in bfloat16 with
kernels. Prints the last validation's nats/pixel of each, what the precision changes at one seed,
and the spread over seeds; draws the losses and their differences. Runs that are there are gone on
with, so that the campaign may be interrupted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from igpt.disk import write_atomically
from igpt.monitor import read_metrics

PRECISIONS = {"float32": "0", "bfloat16": "1"}  # -> whether kernels are used
SMOOTH = 20  # rows of the log that a point of the figure is the mean of

Curve = dict[int, float]


def train(out: Path, precision: str, seed: int, words: list[str]) -> dict[str, Curve]:
    """The run's losses and validations by step."""
    command = [sys.executable, "-m", "igpt", "pretrain", *words, "--out", str(out), "--resume"]
    command += [f"train.precision={precision}", f"train.seed={seed}", "train.log_every=1"]
    environment = {**os.environ, "IGPT_KERNELS": PRECISIONS[precision]}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    rows = read_metrics(out / "metrics.jsonl")
    return {
        kind: {int(row["step"] or 0): float(row[kind] or 0) for row in rows if kind in row}
        for kind in ("loss", "val_loss")
    }


def draw(curves: dict[str, list[dict[str, Curve]]], path: Path) -> None:
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for color, (precision, runs) in zip(("C0", "C1"), curves.items(), strict=True):
        for i, run in enumerate(runs):
            steps, losses = _smooth(run["loss"])
            upper.plot(steps, losses, color=color, linewidth=0.8, label=precision if i == 0 else "")
    for one, other in zip(*curves.values(), strict=True):
        steps, differences = _smooth({s: other["loss"][s] - one["loss"][s] for s in one["loss"]})
        lower.plot(steps, differences, color="C7", linewidth=0.8)
    upper.set_ylabel("loss, nats/pixel")
    upper.legend(frameon=False)
    lower.set_ylabel("bfloat16 - float32")
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=130)


def _smooth(curve: Curve) -> tuple[list[int], list[float]]:
    steps, values = list(curve), list(curve.values())
    mean = np.convolve(values, np.full(SMOOTH, 1 / SMOOTH), mode="valid")
    return steps[SMOOTH - 1 :], mean.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/curves"))
    parser.add_argument("words", nargs="*")
    args = parser.parse_intermixed_args()
    words = [args.recipe, "--data", args.data, *args.words]
    curves: dict[str, list[dict[str, Curve]]] = {precision: [] for precision in PRECISIONS}
    for seed in range(args.seeds):
        for precision, runs in curves.items():
            runs.append(train(args.out / f"{precision}-{seed}", precision, seed, words))
    last = {
        precision: [list(run["val_loss"].values())[-1] for run in runs]
        for precision, runs in curves.items()
    }
    print("| validation, nats/pixel | " + " | ".join(f"seed {s}" for s in range(args.seeds)) + " |")
    print("|---" * (args.seeds + 1) + "|")
    for precision, values in last.items():
        print(f"| {precision} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
    changes = [b - a for a, b in zip(*last.values(), strict=True)]
    print("| difference | " + " | ".join(f"{change:+.4f}" for change in changes) + " |")
    if args.seeds > 1:
        print(f"\nspread over seeds in float32: {statistics.stdev(last['float32']):.4f}")
    write_atomically(args.out / "curves.png", lambda path: draw(curves, path))


if __name__ == "__main__":
    main()
