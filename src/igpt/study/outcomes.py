"""What each method reached with each number of labels."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igpt.config import Say
from igpt.data import few_labels
from igpt.probe.linear import score
from igpt.study.methods import AnyTask, Method, Subset


@dataclass(frozen=True)
class Outcome:
    """What a method reached with some labels."""

    method: str
    labels_per_class: int | None  # None: all of them
    seed: int
    layer: str  # that validation chose; empty where there is no choice
    validation: float  # the metric that chose
    accuracy: float  # on test, looked at once
    balanced_accuracy: float


def subsets(task: AnyTask, sizes: Sequence[int | None], seeds: int) -> list[Subset]:
    """Subsets of every size with every seed; size None is all labels, for which one seed is enough.

    Raises UserError when a class has too few.
    """
    every = np.arange(len(task.train))
    return [
        Subset(size, seed, every if size is None else few_labels(task.train.labels, size, seed))
        for size in sizes
        for seed in range(1 if size is None else seeds)
    ]


def compare(
    methods: Sequence[Method], task: AnyTask, chosen: Sequence[Subset], say: Say
) -> list[Outcome]:
    """Every method with every subset of labels."""
    outcomes = []
    for method in methods:
        for subset in chosen:
            layer, validation, predicted = method.fit(subset)
            accuracy, balanced = (
                score(metric, task.test.labels, predicted)
                for metric in ("accuracy", "balanced_accuracy")
            )
            size, seed = subset.per_class, subset.seed
            outcomes.append(Outcome(method.name, size, seed, layer, validation, accuracy, balanced))
            labels = "all labels" if size is None else f"{size} labels a class, seed {seed}"
            say(f"{method.name}, {labels}: {100 * accuracy:.1f} % on test")
    return outcomes


@dataclass(frozen=True)
class Summary:
    """A method at one number of labels, over the seeds."""

    method: str
    labels_per_class: int | None
    seeds: int
    accuracy: tuple[float, float]  # mean and standard deviation
    balanced_accuracy: tuple[float, float]


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """A row for each method and number of labels, in the order of their first appearance."""
    groups: dict[tuple[str, int | None], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.method, outcome.labels_per_class), []).append(outcome)
    return [
        Summary(
            method,
            size,
            len(group),
            _spread([outcome.accuracy for outcome in group]),
            _spread([outcome.balanced_accuracy for outcome in group]),
        )
        for (method, size), group in groups.items()
    ]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
