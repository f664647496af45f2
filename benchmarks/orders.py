"""The same small model on the digits with each order pi, seeds 0 to 2: test bits/pixel.

python benchmarks/orders.py [--out runs/orders]

Runs that are there already are gone on with, so the campaign may be interrupted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from igpt.data.decode import decode_all
from igpt.data.sources import open_source
from igpt.order import ORDERS
from igpt.pipeline import load
from igpt.pretrain import pretrain
from igpt.recipes import load_recipe

SEEDS, STEPS = (0, 1, 2), 400


def say(line: str) -> None:
    print(line, file=sys.stderr)


def bits_per_pixel(order: str, seed: int, out: Path) -> float:
    """Train if need be, then score the whole test split. Only the run's seed and order differ."""
    # A random order is another permutation for each seed.
    name = f"random:{seed}" if order == "random" else order
    words = [f"order={name}", f"train.seed={seed}", f"train.steps={STEPS}"]
    recipe = load_recipe("digits", words)
    path = out / f"{order}-{seed}"
    pretrain(recipe, path, resume=path.exists(), say=say)
    test = decode_all(open_source("digits").split("test"), recipe.data.image_size).images
    return load(path).likelihood(test).bits_per_pixel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/orders"))
    out = parser.parse_args().out
    print("| order | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean ± deviation |")
    print("|---" * (len(SEEDS) + 2) + "|")
    for order in ORDERS:
        bits = [bits_per_pixel(order, seed, out) for seed in SEEDS]
        spread = f"{statistics.mean(bits):.3f} ± {statistics.stdev(bits):.3f}"
        print(f"| {order} | " + " | ".join(f"{b:.3f}" for b in bits) + f" | {spread} |", flush=True)


if __name__ == "__main__":
    main()
