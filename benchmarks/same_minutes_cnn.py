"""A small residual CNN on all labels of a run's data, for as many minutes as a fine-tuning took.

python benchmarks/same_minutes_cnn.py FINETUNED [--size N] [--augmentation flip] [--minutes M] \
    [--seeds 2]

The pictures are those of the run's data, at its size or at --size; one process, one device.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from igpt.checkpoint import RunDirectory
from igpt.cli.arguments import add_data, run_data
from igpt.monitor import read_metrics, training_minutes
from igpt.study import CnnMethod, compare, subsets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    add_data(parser, limit=False)
    parser.add_argument("--size", type=int)
    parser.add_argument("--augmentation", default="flip")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seeds", type=int, default=2, help="of its first weights and batches")
    args = parser.parse_args()
    run = RunDirectory(args.run)
    recipe = run.recipe()
    minutes = args.minutes or training_minutes(read_metrics(run.metrics), recipe.train.batch_size)
    task = run_data(args).task(args.size or recipe.data.image_size)
    cnn = CnnMethod(task, minutes, args.augmentation, "accuracy")
    (every,) = subsets(task, [None], seeds=1)
    chosen = [replace(every, seed=seed) for seed in range(args.seeds)]
    found = [trial.accuracy for trial in compare([cnn], chosen, print)]
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    print(
        f"{minutes:.1f} minutes at most, {len(task.test):,} pictures: accuracy "
        f"{100 * statistics.mean(found):.1f} ± {100 * spread:.1f} % over {len(found)} seeds"
    )


if __name__ == "__main__":
    main()
