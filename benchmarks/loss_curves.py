"""Does bfloat16 on the kernels train as float32 does? The same data and seeds, four roads.

    python benchmarks/loss_curves.py fashion-mnist --data ../shared/data/fashion_mnist \
        --seeds 3 --out runs/curves train.steps=1000

For every seed one run in float32 on the plain road (IGPT_KERNELS=0), one that sums the gradients
of two halves of each batch, which changes nothing but the rounding of float32, and two in bfloat16:
on the plain road, and with kernels. Prints the last validation's nats/pixel of each, how far each
is from float32 at one seed, and the spread over seeds; draws the losses and their differences.
Runs that are there are gone on with, so that the campaign may be interrupted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from igpt.disk import write_atomically
from igpt.monitor import read_metrics
from igpt.recipes import load_recipe


class Road(NamedTuple):
    precision: str
    kernels: str
    parts: int  # of a batch, whose gradients are summed


ROADS = {
    "float32": Road("float32", "0", 1),
    "float32 in halves": Road("float32", "0", 2),
    "bfloat16, plain road": Road("bfloat16", "0", 1),
    "bfloat16": Road("bfloat16", "1", 1),
}
SMOOTH = 20  # rows of the log that a point of the figure is the mean of

Curve = dict[int, float]


def train(args: argparse.Namespace, name: str, seed: int) -> dict[str, Curve]:
    """The run's losses and validations by step."""
    road = ROADS[name]
    out = args.out / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
    command = [sys.executable, "-m", "igpt", "pretrain", args.recipe, "--data", args.data]
    command += [*args.overrides, "--out", str(out), "--resume"]
    command += [f"train.precision={road.precision}", f"train.seed={seed}", "train.log_every=1"]
    if road.parts > 1:
        batch = load_recipe(args.recipe, args.overrides).train.batch_size
        command += [f"train.micro_batch_size={batch // road.parts}"]
    environment = {**os.environ, "IGPT_KERNELS": road.kernels}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    rows = read_metrics(out / "metrics.jsonl")
    return {
        kind: {int(row["step"] or 0): float(row[kind] or 0) for row in rows if kind in row}
        for kind in ("loss", "val_loss")
    }


def draw(curves: dict[str, list[dict[str, Curve]]], path: Path) -> None:
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for color, (name, runs) in zip(("C0", "C2", "C3", "C1"), curves.items(), strict=True):
        for i, (run, plain) in enumerate(zip(runs, curves["float32"], strict=True)):
            steps, losses = _smooth(run["loss"])
            upper.plot(steps, losses, color=color, linewidth=0.8, label=name if i == 0 else "")
            if name != "float32":
                changes = {s: run["loss"][s] - plain["loss"][s] for s in run["loss"]}
                lower.plot(*_smooth(changes), color=color, linewidth=0.8)
    upper.set_ylabel("loss, nats/pixel")
    upper.legend(frameon=False)
    lower.set_ylabel("less float32's")
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
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    curves: dict[str, list[dict[str, Curve]]] = {name: [] for name in ROADS}
    for seed in range(args.seeds):
        for name, runs in curves.items():
            runs.append(train(args, name, seed))
    last = {
        name: [list(run["val_loss"].values())[-1] for run in runs] for name, runs in curves.items()
    }
    print("| validation, nats/pixel | " + " | ".join(f"seed {s}" for s in range(args.seeds)) + " |")
    print("|---" * (args.seeds + 1) + "|")
    for name, values in last.items():
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
    plain = last.pop("float32")
    for name, values in last.items():
        changes = [value - same for value, same in zip(values, plain, strict=True)]
        print(f"| {name} less float32 | " + " | ".join(f"{c:+.4f}" for c in changes) + " |")
    if args.seeds > 1:
        print(f"\nspread over seeds in float32: {statistics.stdev(plain):.4f}")
    write_atomically(args.out / "curves.png", lambda path: draw(curves, path))


if __name__ == "__main__":
    main()
