"""A small residual CNN on all labels of a run's data, for as many minutes as a fine-tuning took.

python benchmarks/same_minutes_cnn.py FINETUNED [--size N] [--augmentation flip] [--minutes M]

The pictures are those of the run's data, at its size or at --size; one process, one device.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from igpt.baselines import predict_cnn, train_cnn
from igpt.checkpoint import RunDirectory
from igpt.cli.arguments import add_data, load_task
from igpt.monitor import read_metrics, training_minutes
from igpt.probe.linear import METRICS, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    add_data(parser, limit=False)
    parser.add_argument("--size", type=int)
    parser.add_argument("--augmentation", default="flip")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run = RunDirectory(args.run)
    recipe = run.recipe()
    minutes = args.minutes or training_minutes(read_metrics(run.metrics), recipe.train.batch_size)
    task = load_task(args, args.size or recipe.data.image_size)
    train, validation, test = task.train, task.validation, task.test
    cnn = train_cnn(
        train.pixels,
        train.labels,
        validation.pixels,
        validation.labels,
        train.n_classes,
        minutes=minutes,
        augmentation=args.augmentation,
        seed=args.seed,
    )
    predicted = predict_cnn(cnn, test.pixels)
    values = (f"{100 * score(metric, test.labels, predicted):.2f} % {metric}" for metric in METRICS)
    print(f"{minutes:.1f} minutes, {len(test):,} pictures: {', '.join(values)}")


if __name__ == "__main__":
    main()
