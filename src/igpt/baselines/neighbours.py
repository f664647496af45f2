"""Nearest neighbours on features: a probe that learns nothing."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from igpt.probe.linear import metric_value
from igpt.types import Labels

COUNTS = (1, 3, 5, 10, 20)  # how many neighbours may vote, if there are so many labels


def fit_neighbours(
    x: npt.NDArray[Any],
    labels: Labels,
    validation_x: npt.NDArray[Any],
    validation_labels: Labels,
    metric: str,
) -> tuple[Any, float]:
    """scikit-learn's classifier on x [n, F], by cosine, and what it reaches on validation, which
    chooses how many vote.
    """
    from sklearn.neighbors import KNeighborsClassifier

    fitted = [
        KNeighborsClassifier(count, metric="cosine").fit(x, labels)
        for count in COUNTS
        if count <= len(x)
    ]
    values = [metric_value(metric, validation_labels, f.predict(validation_x)) for f in fitted]
    best = values.index(max(values))
    return fitted[best], values[best]
