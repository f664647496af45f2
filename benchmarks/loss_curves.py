"""Does a run in bfloat16 with kernels learn what one in plain float32 learns?

    python benchmarks/loss_curves.py [--recipe digits] [--data FOLDER] [--seeds 3] [WORDS ...]
    python benchmarks/loss_curves.py --seeds 2 --out runs/try train.steps=20 train.eval_every=10

Trains the recipe with each seed twice, on the same batches from the same weights: in float32 with
IGPT_KERNELS=0, and in bfloat16 with the kernels. WORDS are overrides such as train.steps=400. Runs
that are there already are gone on with, so the campaign may be interrupted. All seeds share the
palette of the first run. Prints the losses at the end in nats a pixel, and their difference at the
same seed beside the deviation over seeds; writes loss_curves.json and loss_curves.png to --out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import machine
from matplotlib.figure import Figure

from igpt.checkpoint import RunDirectory, write_atomically, write_json
from igpt.config import load_recipe
from igpt.monitor import read_metrics
from igpt.plots.curves import BLUE, ORANGE

KERNELS = {"float32": "0", "bfloat16": "1"}  # IGPT_KERNELS of each precision
STYLES: dict[str, dict[str, Any]] = {  # the first is seen beneath the second
    "float32": {"color": BLUE, "linewidth": 2.5},
    "bfloat16": {"color": ORANGE, "linewidth": 0.8},
}
KINDS = {"loss": "training", "val_loss": "validation"}
ENDING = 0.1  # of the logged steps: a training loss at the end is their mean

Curve = npt.NDArray[np.float64]  # [2, n]: steps, losses


@dataclass(frozen=True)
class Run:
    """One seed in one precision."""

    seed: int
    precision: str

    def folder(self, out: Path) -> Path:
        return out / f"{self.precision}-{self.seed}"

    def train(self, recipe: str, words: list[str], out: Path) -> None:
        """Train, or go on with what is there; nothing to do where all steps are done."""
        folder = self.folder(out)
        words = [*words, f"train.seed={self.seed}", f"train.precision={self.precision}"]
        first = Run(0, "float32").folder(out)
        if folder != first and not any(word.startswith("palette.path=") for word in words):
            words.append(f"palette.path={first / 'palette.npy'}")
        steps = load_recipe(recipe, words).train.steps
        if steps in curve(folder, "loss")[0]:
            return
        print(f"{self.precision}, seed {self.seed}", file=sys.stderr)
        command = [sys.executable, "-m", "igpt", "pretrain", recipe, *words, "--out", str(folder)]
        if RunDirectory(folder).exists():
            command.append("--resume")
        environment = {**os.environ, "IGPT_KERNELS": KERNELS[self.precision]}
        subprocess.run(command, check=True, env=environment)


def curve(folder: Path, kind: str) -> Curve:
    """Steps and losses of the rows that have one, [2, n]."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row.get(kind) is not None]
    return np.array([[row["step"], row[kind]] for row in rows], dtype=float).reshape(-1, 2).T


def last(curves: Curve, kind: str) -> float:
    """The loss at the end of a curve: a step's training loss depends on its batch."""
    losses = curves[1]
    n = max(1, round(len(losses) * ENDING)) if kind == "loss" else 1
    return float(losses[-n:].mean())


def spread(values: list[float]) -> str:
    """Mean ± deviation; one seed has none."""
    if len(values) < 2:
        return f"{values[0]:.5f}"
    return f"{statistics.mean(values):.5f} ± {statistics.stdev(values):.5f}"


def table(ends: dict[str, dict[str, list[float]]]) -> str:
    """Markdown of the losses at the end, by kind and precision, a value a seed."""
    names = [f"{name}, {part}" for name in KINDS.values() for part in (*KERNELS, "difference")]
    columns: list[list[float]] = []
    for kind in KINDS:
        by_precision = [ends[kind][precision] for precision in KERNELS]
        apart = [b - a for a, b in zip(*by_precision, strict=True)]
        columns += [*by_precision, apart]
    lines = ["| seed | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for seed in range(len(columns[0])):
        lines.append(f"| {seed} | " + " | ".join(f"{c[seed]:.5f}" for c in columns) + " |")
    lines.append("| mean ± sd | " + " | ".join(spread(column) for column in columns) + " |")
    return "\n".join(lines)


def draw(runs: dict[Run, dict[str, Curve]], seeds: int, path: Path) -> None:
    """Both curves of every seed, and their difference."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, apart = figure.subplots(1, 2)
    for run, curves in runs.items():
        style, name = STYLES[run.precision], run.precision if run.seed == 0 else None
        losses.plot(*curves["loss"], label=name, **style)
        dots = {"marker": "o", "markersize": 3 + style["linewidth"], "linestyle": "none"}
        losses.plot(*curves["val_loss"], color=style["color"], **dots)
    for seed in range(seeds):
        plain, fast = (runs[Run(seed, precision)] for precision in KERNELS)
        for kind, style in (
            ("loss", {"alpha": 0.4, "linewidth": 0.8}),
            ("val_loss", {"marker": "o"}),
        ):
            label = f"{KINDS[kind]}, same seed" if seed == 0 else None
            color = BLUE if kind == "loss" else ORANGE
            gap = fast[kind][1] - plain[kind][1]
            apart.plot(plain[kind][0], gap, color=color, label=label, markersize=3, **style)
    losses.set_ylabel("nats / pixel (dots: validation)")
    apart.set_ylabel("bfloat16 - float32, nats / pixel")
    apart.axhline(0, color="black", linewidth=0.8)
    for axes in (losses, apart):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/loss-curves"))
    parser.add_argument("words", nargs="*")
    args = parser.parse_intermixed_args()
    words = [*args.words, *([f"data.source={args.data}"] if args.data else [])]
    runs: dict[Run, dict[str, Curve]] = {}
    for seed in range(args.seeds):
        for precision in KERNELS:
            run = Run(seed, precision)
            run.train(args.recipe, words, args.out)
            runs[run] = {kind: curve(run.folder(args.out), kind) for kind in KINDS}
    ends = {
        kind: {
            precision: [
                last(c[kind], kind) for run, c in runs.items() if run.precision == precision
            ]
            for precision in KERNELS
        }
        for kind in KINDS
    }
    print(f"{args.recipe} {' '.join(words)}, nats/pixel\n\n{table(ends)}")
    about: dict[str, Any] = {"machine": machine(), "recipe": args.recipe, "words": words}
    write_json(args.out / "loss_curves.json", {**about, "ends": ends})
    write_atomically(args.out / "loss_curves.png", lambda path: draw(runs, args.seeds, path))


if __name__ == "__main__":
    main()
