"""What a training step and a sampled pixel cost against tokens, width, depth and batch.

    python benchmarks/costs.py             (about five minutes on two cores)
    python benchmarks/costs.py --quick     (two points a line, one round)

One size varies at a time around L=8, d=128 in heads of 32, 1,024 tokens, batch 4. The step is the
loop's, in bfloat16 with kernels and not compiled; the pixel is decoded in bfloat16 in the middle of
a picture, so that T times its cost is a picture's. Each point runs in a process of its own, which
gives its peak memory (PyTorch itself is some 0.3 GiB of it), and the points of a line take turns.
Prints a table, and writes costs.json and costs.png to --out: measured points beside lines that are
proportional to the FLOPs, through the point that makes the most of them a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from contest import Contender, contest
from machine import machine
from peers import SMALL, at_length, needed_flops, sample_ours, train_ours

from igpt.config import ModelConfig
from igpt.disk import write_atomically, write_json

BATCH, HEAD = 4, 32  # pictures; width of a head
STEPS = 64  # pixels of a unit of sampling
GIB = 2**30
LINES = {
    "tokens": (256, 576, 1024, 2304, 4096),
    "width": (64, 128, 256, 512),
    "depth": (2, 4, 8, 16, 24),
    "batch": (1, 2, 4, 8, 16, 32),
}


@dataclass(frozen=True)
class Cost:
    """Of one picture: seconds, their range, FLOPs; and the peak memory of the process."""

    seconds: float
    least: float
    most: float
    flops: float
    peak_bytes: int


@dataclass(frozen=True)
class Point:
    """What was measured at one value of a line."""

    line: str
    value: int
    tokens: int
    training: Cost
    sampling: Cost


def shape(line: str, value: int) -> tuple[ModelConfig, int]:
    """The middle of all lines but for one size, and the batch."""
    if line == "tokens":
        return at_length(SMALL, value), BATCH
    if line == "width":
        return replace(SMALL, n_embd=value, n_head=value // HEAD), BATCH
    if line == "depth":
        return replace(SMALL, n_layer=value), BATCH
    return SMALL, value


def measure(line: str, values: Sequence[int], rounds: int) -> list[Point]:
    """All points of a line, in alternation: first training, then sampling."""
    shapes = {str(value): shape(line, value) for value in values}
    train = {
        name: Contender(train_ours, (config, batch, True, False))
        for name, (config, batch) in shapes.items()
    }
    sample = {
        name: Contender(
            sample_ours,
            (config, batch, (config.n_positions - STEPS) // 2, STEPS, "bfloat16"),
        )
        for name, (config, batch) in shapes.items()
    }
    trained, sampled = contest(train, 1, rounds), contest(sample, 1, rounds)  # units a second
    points = []
    for value, (name, (config, batch)) in zip(values, shapes.items(), strict=True):
        costs = [
            Cost(
                pictures / result.median,
                pictures / result.highest,
                pictures / result.lowest,
                flops,
                result.peak_bytes,
            )
            for result, pictures, flops in (
                (trained[name], 1 / batch, needed_flops(config)),
                (sampled[name], config.n_positions / STEPS / batch, needed_flops(config) / 3),
            )
        ]
        points.append(Point(line, value, config.n_positions, *costs))
    return points


def row(point: Point) -> str:
    """A line of the table."""
    t, s = point.training, point.sampling
    pixel = [1e6 * seconds / point.tokens for seconds in (s.seconds, s.least, s.most)]
    return (
        f"| {point.line} {point.value:,} "
        f"| {1e3 * t.seconds:.1f} ({1e3 * t.least:.1f} to {1e3 * t.most:.1f}) "
        f"| {t.flops / t.seconds / 1e9:.0f} | {t.peak_bytes / GIB:.2f} GiB "
        f"| {pixel[0]:.0f} ({pixel[1]:.0f} to {pixel[2]:.0f}) | {s.peak_bytes / GIB:.2f} GiB |"
    )


def draw(points: list[Point], path: Path) -> None:
    """Seconds a picture against each size, and what its FLOPs would take at the best rate."""
    from matplotlib.figure import Figure

    from igpt.plots.curves import BLUE, ORANGE

    figure = Figure(figsize=(9, 7), layout="constrained")
    for axes, line in zip(figure.subplots(2, 2).flat, LINES, strict=True):
        here = [point for point in points if point.line == line]
        values = [point.value for point in here]
        kinds = {
            "training step": (BLUE, [point.training for point in here]),
            "sampling, all its pixels": (ORANGE, [point.sampling for point in here]),
        }
        for name, (color, costs) in kinds.items():
            seconds = [cost.seconds for cost in costs]
            errors = [
                [cost.seconds - cost.least for cost in costs],
                [cost.most - cost.seconds for cost in costs],
            ]
            best = max(cost.flops / cost.seconds for cost in costs)
            axes.errorbar(values, seconds, errors, color=color, marker="o", linestyle="none",
                          markersize=4, capsize=2, label=name)  # fmt: skip
            axes.plot(values, [cost.flops / best for cost in costs], color=color, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(line)
        axes.set_ylabel("seconds a picture")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, title="lines: proportional to FLOPs")
    figure.savefig(path, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/costs"))
    args = parser.parse_args()
    columns = ["", "training, ms a picture (range)", "GFLOP/s", "peak memory",
               "sampling, µs a pixel (range)", "peak memory"]  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    points: list[Point] = []
    for line, values in LINES.items():
        some = measure(line, values[:2], 1) if args.quick else measure(line, values, args.rounds)
        print("\n".join(map(row, some)), flush=True)
        points += some
    write_json(
        args.out / "costs.json",
        {"machine": machine(), "points": [asdict(point) for point in points]},
    )
    write_atomically(args.out / "costs.png", lambda path: draw(points, path))


if __name__ == "__main__":
    main()
