"""A small residual CNN on the labels of a run's data, for as many minutes as a fine-tuning took.

python benchmarks/same_minutes_cnn.py FINETUNED [--size N] [--augmentation flip] [--minutes M] \
    [--seeds 2] [--metric accuracy] [--labels-per-class N] [--least-steps N]

The pictures are those of the run's data, at its size or at --size; one process, one device. With
--labels-per-class they are the subsets of `igpt probe`; --least-steps trains longer than its CNN.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from igpt.baselines.cnn import LEAST_STEPS
from igpt.checkpoint import RunDirectory
from igpt.cli.arguments import add_data, run_data
from igpt.config import METRICS
from igpt.monitor import read_metrics, training_minutes
from igpt.study.methods import CnnMethod
from igpt.study.outcomes import subsets, try_method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    add_data(parser, limit=None)
    parser.add_argument("--size", type=int)
    parser.add_argument("--augmentation", default="flip")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seeds", type=int, default=2, help="of its first weights and batches")
    parser.add_argument("--metric", choices=METRICS, default="accuracy", help="that chooses")
    parser.add_argument("--labels-per-class", type=int, help="default: all there are")
    parser.add_argument("--least-steps", type=int, default=LEAST_STEPS)
    args = parser.parse_args()
    run = RunDirectory(args.run)
    recipe = run.recipe()
    minutes = args.minutes or training_minutes(read_metrics(run.metrics), recipe.train.batch_size)
    task = run_data(args).task(args.size or recipe.data.image_size)
    method = CnnMethod(task, minutes, args.augmentation, args.metric, args.least_steps)
    chosen = subsets(task, [args.labels_per_class], args.seeds)
    if args.labels_per_class is None:
        chosen = [replace(chosen[0], seed=seed) for seed in range(args.seeds)]
    trials = try_method(method, chosen, print)
    print(f"{minutes:.1f} minutes at most, {len(task.test):,} pictures, {args.seeds} seeds:")
    for metric in METRICS:
        found = [getattr(trial, metric) for trial in trials]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        print(f"{metric} {100 * statistics.mean(found):.1f} ± {100 * spread:.1f} %")


if __name__ == "__main__":
    main()
