"""The CNN and the neighbours that probes are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from igpt.baselines import fit_neighbours, predict_cnn, train_cnn
from igpt.config import DataConfig, UserError
from igpt.data import few_labels, open_source, open_task

TASK = open_task(open_source("digits"), DataConfig(), 8, seed=0)


def train(per_class: int, *, minutes: float = 30, seed: int = 0, augmentation: str = "none"):
    part = TASK.train.select(few_labels(TASK.train.labels, per_class, seed))
    held = TASK.validation
    return train_cnn(
        part.images, part.labels, held.images, held.labels, 10,
        minutes=minutes, augmentation=augmentation, seed=seed,
    )  # fmt: skip


def test_it_learns_the_digits() -> None:
    right = predict_cnn(train(30), TASK.test.images) == TASK.test.labels
    assert right.mean() > 0.85


def test_it_is_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.baselines.cnn.MIN_STEPS", 20)
    monkeypatch.setattr("igpt.baselines.cnn.EPOCHS", 1)
    a, b, c = (train(5, seed=seed, augmentation="cifar") for seed in (0, 0, 1))
    images = TASK.test.images
    assert np.array_equal(predict_cnn(a, images), predict_cnn(b, images))
    assert not np.array_equal(predict_cnn(a, images), predict_cnn(c, images))


def test_one_label_a_class_and_no_time_are_enough_to_end() -> None:
    assert predict_cnn(train(1, minutes=1e-6), TASK.test.images).shape == (297,)


def test_one_class_is_refused() -> None:
    images, labels = TASK.train.images[:5], np.zeros(5, np.int64)
    with pytest.raises(UserError, match="two classes"):
        train_cnn(images, labels, images, labels, 2, minutes=1, augmentation="none", seed=0)


def test_neighbours_vote_as_many_as_validation_likes(tmp_path: Path) -> None:
    x = TASK.train.images.reshape(1350, -1).astype(np.float32)
    held = TASK.validation.images.reshape(150, -1).astype(np.float32)
    neighbours = fit_neighbours(x, TASK.train.labels, held, TASK.validation.labels)
    assert neighbours.score(held, TASK.validation.labels) > 0.95
    few = few_labels(TASK.train.labels, 1, 0)[:2]
    assert fit_neighbours(x[few], np.array([3, 5]), held, np.full(150, 3)).n_neighbors == 1
