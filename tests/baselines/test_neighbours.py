"""The nearest neighbours that probes are compared with."""

from __future__ import annotations

import numpy as np
import pytest

from igpt.baselines.neighbours import fit_neighbours


@pytest.mark.parametrize(("labels", "voting"), [([0, 1], 3), ([1, 1], 1)])
def test_neighbours_vote_as_many_as_validation_likes(labels: list[int], voting: int) -> None:
    def at(*degrees: float) -> np.ndarray:
        angles = np.radians(degrees)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    x, y = at(0, 1, 2, 3, 4, 90, 91, 92, 93, 94), np.array([0, 0, 1, 0, 0, 1, 1, 1, 1, 1])
    held_out = at(2.1, 91.1)  # the first lies beside a picture of another class
    assert fit_neighbours(x, y, held_out, np.array(labels), "accuracy")[0].n_neighbors == voting


def test_of_two_labels_one_votes() -> None:
    x, y = np.eye(2), np.array([0, 1])
    assert fit_neighbours(x, y, x, y, "accuracy")[0].n_neighbors == 1
