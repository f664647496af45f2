"""Nearest neighbours on features: a probe that learns nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]

COUNTS = (1, 3, 5, 10, 20)  # of neighbours that vote, where there are so many labels


def fit_neighbours(
    x: npt.NDArray[Any], labels: Labels, validation_x: npt.NDArray[Any], validation_y: Labels
) -> Any:
    """scikit-learn's classifier on x [n, F], by cosine; validation chooses how many vote."""
    from sklearn.neighbors import KNeighborsClassifier

    fitted = [
        KNeighborsClassifier(count, metric="cosine").fit(x, labels)
        for count in COUNTS
        if count <= len(x)
    ]
    return max(fitted, key=lambda neighbours: neighbours.score(validation_x, validation_y))
