"""Does this code still train as a kept run was trained? Its first steps again, loss beside loss.

    python benchmarks/same_start.py runs/fm14-L8 runs/fm14-L4 --steps 100

Trains each run's recipe anew, from its palette or the model that it was fine-tuned from, stops
after so many steps, and prints the largest difference from what the run has logged, in nats per
pixel. A training is the same to the bit on the same kind of machine with as many threads: 0 tells,
in a minute instead of hours, that the run is what this code makes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

from igpt.checkpoint import RunDirectory
from igpt.finetune import finetune
from igpt.monitor import read_metrics
from igpt.pretrain import pretrain
from igpt.recipes import with_overrides


def losses(run: Path) -> dict[int, float]:
    """By step; nothing of a run that has not begun."""
    rows = read_metrics(run / "metrics.jsonl")
    return {int(row["step"] or 0): float(row["loss"] or 0) for row in rows if "loss" in row}


def train(run: Path, out: Path) -> None:
    recipe = RunDirectory(run).recipe()
    if recipe.init_from is None:
        recipe = with_overrides(recipe, [f"palette.path={run / 'palette.npy'}"], str(run))
    act = pretrain if recipe.finetune is None else finetune
    act(recipe, out, resume=False, say=say)


def say(line: str) -> None:
    print(line, file=sys.stderr)


def start_again(run: Path, steps: int, out: Path) -> dict[int, float]:
    training = multiprocessing.get_context("spawn").Process(target=train, args=(run, out))
    training.start()
    while training.is_alive() and max(losses(out), default=0) < steps:
        time.sleep(0.5)
    training.terminate()  # the loop ends its step
    training.join()
    return losses(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    for run in args.runs:
        kept = losses(run)
        with tempfile.TemporaryDirectory() as folder:
            found = start_again(run, args.steps, Path(folder) / "run")
        both = sorted(kept.keys() & found.keys())
        assert both, f"{run} has logged none of the first {args.steps} steps"
        apart = max(abs(kept[step] - found[step]) for step in both)
        print(f"{run.name}: {len(both)} losses to step {both[-1]}, {apart:.2g} apart", flush=True)


if __name__ == "__main__":
    main()
