"""The residual network that probes are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from igpt.baselines.cnn import LEAST_STEPS, ResidualCNN, predict_cnn, train_cnn
from igpt.config import DataConfig, UserError
from igpt.data.labels import few_labels, open_task
from igpt.data.sources import open_source

TASK = open_task(open_source("digits"), DataConfig(), 8, seed=0)


def train(
    per_class: int,
    *,
    minutes: float = 30,
    seed: int = 0,
    augmentation: str = "none",
    least_steps: int = LEAST_STEPS,
):
    part = TASK.train.select(few_labels(TASK.train.labels, per_class, seed))
    held = TASK.validation
    return train_cnn(
        part.images, part.labels, held.images, held.labels, 10,
        minutes=minutes, augmentation=augmentation, metric="accuracy", seed=seed,
        least_steps=least_steps,
    )  # fmt: skip


def test_it_learns_the_digits() -> None:
    right = predict_cnn(train(30, least_steps=150), TASK.test.images) == TASK.test.labels
    assert right.mean() > 0.85


@pytest.mark.usefixtures("on_processor")
def test_it_is_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.baselines.cnn.EPOCHS", 1)
    a, b, c = (train(5, seed=seed, augmentation="cifar", least_steps=20) for seed in (0, 0, 1))
    images = TASK.test.images
    assert np.array_equal(predict_cnn(a, images), predict_cnn(b, images))
    assert not np.array_equal(predict_cnn(a, images), predict_cnn(c, images))


def test_the_weights_that_validation_liked_best_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, worth = list[torch.Tensor](), iter([0.2, 0.9, 0.5])

    def predict(model: ResidualCNN, images: np.ndarray) -> np.ndarray:
        seen.append(model.out.weight.detach().clone())
        return np.zeros(len(images), np.int64)

    for name, value in (("EPOCHS", 0), ("VALIDATIONS", 3)):
        monkeypatch.setattr(f"igpt.baselines.cnn.{name}", value)
    monkeypatch.setattr("igpt.baselines.cnn.predict_cnn", predict)
    monkeypatch.setattr("igpt.baselines.cnn.metric_value", lambda *_: next(worth))
    kept = train(1, least_steps=6).out.weight
    assert len(seen) == 3
    assert torch.equal(kept, seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_its_pictures_are_augmented_as_told_until_its_minutes_are_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = list[str]()

    def move(images: np.ndarray, augmentation: str, rng: np.random.Generator) -> np.ndarray:
        moved.append(augmentation)
        return np.zeros_like(images)

    monkeypatch.setattr("igpt.baselines.cnn.move_pixels", move)
    learned = train(1, minutes=1e-6, augmentation="cifar")
    assert moved == ["cifar"]  # a step, of the 400 that there would be time for
    assert predict_cnn(learned, TASK.test.images).shape == (297,)


def test_one_class_is_refused() -> None:
    images, labels = TASK.train.images[:5], np.zeros(5, np.int64)
    with pytest.raises(UserError, match="two classes"):
        train_cnn(
            images, labels, images, labels, 2,
            minutes=1, augmentation="none", metric="accuracy", seed=0,
        )  # fmt: skip
