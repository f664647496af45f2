"""Labelled pictures: the splits of a classification task, and small labelled subsets of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from igpt.config import DataConfig, UserError
from igpt.data.decode import Pixels, decode_all, fit_square, imagenet_centre
from igpt.data.pictures import Pictures, Source
from igpt.data.sources import evaluation_split, training_splits
from igpt.order import Encoded, need_pixels
from igpt.rng import numpy_rng

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """Pictures of one size with a class each."""

    images: Pixels | Encoded  # [N, S, S, 3], or [N, T] where they are tokens already
    labels: Labels  # [N], 0 to n_classes - 1
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def pixels(self) -> Pixels:
        """The pictures [N, S, S, 3]; UserError where they are tokens."""
        return need_pixels(self.images)

    def select(self, indices: npt.NDArray[np.integer]) -> Labelled:
        """The pictures at `indices` [M], in that order."""
        return Labelled(self.images[indices], self.labels[indices], self.class_names)


@dataclass(frozen=True)
class Task:
    """A classification task: test is for the last look only."""

    train: Labelled
    validation: Labelled
    test: Labelled


def open_task(source: Source, config: DataConfig, image_size: int, seed: int) -> Task:
    """The three splits of a labelled source, at the model's size.

    Raises UserError when a split has no labels, or all pictures are of one class.
    """
    train, validation = training_splits(source, config, seed)
    test = evaluation_split(source, config.test_split)
    names = _class_names(source.name, (train, validation, test))
    parts = {"train": train, "validation": validation, "test": test}
    train_set, validation_set, test_set = (
        labelled(part, f"{source.name}, {split} split", names, config, image_size)
        for split, part in parts.items()
    )
    if len(np.unique(train_set.labels)) < 2:
        raise UserError(f"{source.name}: all pictures are of one class, there is nothing to learn")
    return Task(train_set, validation_set, test_set)


def labelled(
    pictures: Pictures, name: str, class_names: tuple[str, ...], config: DataConfig, size: int
) -> Labelled:
    """Decode a split and keep what has a label; UserError that names it when nothing has.

    A model trained on ImageNet's random crops is given the centre crop (paper, section 3.1).
    """
    if pictures.labels is None or not (pictures.labels >= 0).any():
        raise UserError(f"{name}: the pictures have no labels (--label-column names their column)")
    unlabelled = int((pictures.labels < 0).sum())
    if unlabelled:
        warnings.warn(f"{name}: left out {unlabelled} pictures without a label", stacklevel=2)
        pictures = pictures.select(np.flatnonzero(pictures.labels >= 0))
    crop = imagenet_centre if config.augmentation == "imagenet" else fit_square
    decoded = decode_all(pictures, size, crop)
    assert pictures.labels is not None
    return Labelled(decoded.images, pictures.labels[decoded.kept], class_names)


def _class_names(name: str, splits: tuple[Pictures, ...]) -> tuple[str, ...]:
    """The source's, else the numbers up to the largest label."""
    named = next((part.class_names for part in splits if part.class_names is not None), None)
    if named is not None:
        return named
    largest = max((int(p.labels.max()) for p in splits if p.labels is not None), default=-1)
    if largest > 100_000:
        raise UserError(f"{name}: label {largest} is no class number; --label-column names another")
    return tuple(str(i) for i in range(largest + 1))


def few_labels(labels: Labels, per_class: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of `per_class` random pictures of each class that occurs, sorted.

    Raises UserError that names a class with fewer.
    """
    chosen = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < per_class:
            raise UserError(
                f"class {label} has {len(of_class)} labelled pictures to train on, "
                f"{per_class} were asked for"
            )
        rng = numpy_rng(seed, "labels", int(label))
        chosen.append(rng.permutation(of_class)[:per_class])
    return np.sort(np.concatenate(chosen))
