"""The nearest neighbours that probes are compared with."""

from __future__ import annotations

import numpy as np

from igpt.baselines import fit_neighbours
from igpt.config import DataConfig
from igpt.data import few_labels, open_source, open_task

TASK = open_task(open_source("digits"), DataConfig(), 8, seed=0)


def test_neighbours_vote_as_many_as_validation_likes() -> None:
    x = TASK.train.images.reshape(1350, -1).astype(np.float32)
    held = TASK.validation.images.reshape(150, -1).astype(np.float32)
    neighbours = fit_neighbours(x, TASK.train.labels, held, TASK.validation.labels, "accuracy")
    assert neighbours.score(held, TASK.validation.labels) > 0.95
    few = few_labels(TASK.train.labels, 1, 0)[:2]
    two = fit_neighbours(x[few], np.array([3, 5]), held, np.full(150, 3), "accuracy")
    assert two.n_neighbors == 1
