"""What each method reached with each number of labels."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from igpt.config import METRICS, Say
from igpt.data.labels import few_labels
from igpt.probe.linear import metric_value
from igpt.study.methods import AnyTask, Fit, Method, Subset


@dataclass(frozen=True, eq=False)
class Trial:
    """A method that was given some labels, and what it reached on the test pictures."""

    method: str
    subset: Subset
    fit: Fit
    accuracy: float
    balanced_accuracy: float

    def row(self) -> dict[str, Any]:
        """The trial as a row of results."""
        return {
            "method": self.method,
            "labels_per_class": self.subset.per_class,
            "seed": self.subset.seed,
            "layer": self.fit.layer,
            "validation": self.fit.validation,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
        }


def subsets(task: AnyTask, sizes: Sequence[int | None], seeds: int) -> list[Subset]:
    """Subsets of every size with every seed; size None is all labels, for which one seed is enough.

    Raises UserError when a class has fewer labels than a size.
    """
    every, few = np.arange(len(task.train)), partial(few_labels, names=task.train.class_names)
    return [
        Subset(size, seed, every if size is None else few(task.train.labels, size, seed))
        for size in sizes
        for seed in range(1 if size is None else seeds)
    ]


def try_method(method: Method, chosen: Sequence[Subset], say: Say) -> list[Trial]:
    """What a method reaches with each subset of labels."""
    trials, labels = [], method.task.test.labels
    for subset in chosen:
        fit = method.fit(subset)
        accuracy, balanced = (metric_value(metric, labels, fit.predicted) for metric in METRICS)
        trials.append(Trial(method.name, subset, fit, accuracy, balanced))
        size, seed = subset.per_class, subset.seed
        given = "all labels" if size is None else f"{size} labels a class, seed {seed}"
        say(
            f"{method.name}, {given}: {100 * accuracy:.1f} % on test, balanced "
            f"{100 * balanced:.1f} %"
        )
    return trials


@dataclass(frozen=True)
class Summary:
    """A method at one number of labels, over the seeds."""

    method: str
    labels_per_class: int | None
    seeds: int
    accuracy: tuple[float, float]  # mean and standard deviation
    balanced_accuracy: tuple[float, float]


def summarise(trials: Sequence[Trial]) -> list[Summary]:
    """A row for each method and number of labels, in the order of their first appearance."""
    groups: dict[tuple[str, int | None], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.method, trial.subset.per_class), []).append(trial)
    return [
        Summary(
            method,
            size,
            len(group),
            _spread([trial.accuracy for trial in group]),
            _spread([trial.balanced_accuracy for trial in group]),
        )
        for (method, size), group in groups.items()
    ]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
