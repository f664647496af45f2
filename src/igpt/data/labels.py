"""Labelled pictures: the splits of a classification task, and small labelled subsets of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from igpt.config import DataConfig, UserError
from igpt.data.augment import augmented_view
from igpt.data.decode import (
    Decoded,
    Transform,
    decode_all,
    encode_all,
    evaluation_transform,
)
from igpt.data.loader import Loader, PictureLoader, TokenLoader
from igpt.data.pictures import MINUS_ONE, Pictures, Source
from igpt.data.splits import pictures_to_test, task_training_splits
from igpt.order import Codec, Encoded, need_pixels
from igpt.rng import numpy_rng
from igpt.types import Labels, Pixels

UNLABELLED = 5_000  # training pictures that tell without their labels how features are spread
NAMED = 5  # absent classes that a warning names


LARGEST_LABEL = 100_000  # of classes without names; above it a number is of something else


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

    def loader(self, codec: Codec, batch_size: int, seed: int, augmentation: str) -> Loader:
        """Batches to train on: encoded once, then augmented by moving tokens (flip or cifar)."""
        tokens = codec.raster_tokens(self.images)
        return TokenLoader(tokens, self.labels, codec, batch_size, seed, augmentation)


@dataclass(frozen=True)
class LazyLabelled:
    """Labelled pictures that are opened as they are needed: memory need not hold all of them."""

    pictures: Pictures  # each has a label, and may prove unreadable
    class_names: tuple[str, ...]
    transform: Transform  # brings them to the model's size, unless they are cropped at random

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labels(self) -> Labels:
        """[N], 0 to n_classes - 1."""
        assert self.pictures.labels is not None
        return self.pictures.labels

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def select(self, indices: npt.NDArray[np.int64]) -> LazyLabelled:
        """The pictures at `indices` [M], in that order."""
        return replace(self, pictures=self.pictures.select(indices))

    def decode(self, size: int) -> Labelled:
        """The readable ones as pixels; the others are named in a warning."""
        return self._readable(decode_all(self.pictures, size, self.transform))

    def encode(self, codec: Codec) -> Labelled:
        """The readable ones as tokens, two bytes a pixel; the others are named in a warning."""
        return self._readable(encode_all(self.pictures, codec, self.transform))

    def _readable(self, decoded: Decoded) -> Labelled:
        return Labelled(decoded.images, self.labels[decoded.kept], self.class_names)

    def loader(self, codec: Codec, batch_size: int, seed: int, augmentation: str) -> Loader:
        """Batches to train on, with `augmentation` none, flip, cifar or imagenet.

        Pictures in memory are encoded once and their tokens moved. Files are decoded at each step,
        and with imagenet's crops all pictures are. Raises UserError for crops of tokens.
        """
        pictures = self.pictures
        if augmentation == "imagenet":
            pictures.require_croppable()
        elif pictures.in_memory:
            return self.encode(codec).loader(codec, batch_size, seed, augmentation)
        view = augmented_view(augmentation, self.transform)
        return PictureLoader(pictures, codec, batch_size, seed, view)


@dataclass(frozen=True)
class Task:
    """A classification task; `test` is only for the final result."""

    train: Labelled
    validation: Labelled
    test: Labelled


@dataclass(frozen=True)
class LargeTask:
    """A task of which only the validation and test pictures are in memory, as tokens."""

    train: LazyLabelled
    validation: Labelled
    test: Labelled


def open_task(source: Source, config: DataConfig, image_size: int, seed: int) -> Task:
    """The three splits of a labelled source, at the model's size.

    Raises UserError when a split has no labels, or those to train on are of one class.
    """
    return Task(*(part.decode(image_size) for part in _open_splits(source, config, seed)))


def open_large_task(source: Source, config: DataConfig, codec: Codec, seed: int) -> LargeTask:
    """As `open_task`, for a source that need not fit in memory."""
    train, validation, test = _open_splits(source, config, seed)
    return LargeTask(train, validation.encode(codec), test.encode(codec))


def open_training(source: Source, config: DataConfig, seed: int) -> list[LazyLabelled]:
    """Training and validation pictures of a source that may have no labelled test split.

    Raises UserError as `open_task`.
    """
    train, validation = task_training_splits(source, config, seed)
    return _classified(source.name, {"train": train, "validation": validation}, config)


def _open_splits(source: Source, config: DataConfig, seed: int) -> list[LazyLabelled]:
    """Training, validation and test pictures."""
    train, validation = task_training_splits(source, config, seed)
    test = pictures_to_test(source, config, seed)
    parts = {"train": train, "validation": validation, "test": test}
    return _classified(source.name, parts, config)


def _classified(name: str, parts: dict[str, Pictures], config: DataConfig) -> list[LazyLabelled]:
    """The labelled pictures of each split; the first split is the one to learn from."""
    names = _class_names(name, tuple(parts.values()))
    found = [
        labelled(part, f"{name}, {split} split", names, config) for split, part in parts.items()
    ]
    learned, *others = (np.setdiff1d(part.labels, [-1]) for part in found)
    for label in np.setdiff1d(np.concatenate(others), learned).tolist():
        warnings.warn(
            f"{name}: no picture to train on is of class {names[label]}, so none is taken for it",
            stacklevel=2,
        )
    for split, present in zip(list(parts)[1:], others, strict=True):
        if absent := [names[label] for label in np.setdiff1d(learned, present).tolist()]:
            listed = ", ".join(absent[:NAMED]) + (", …" if len(absent) > NAMED else "")
            warnings.warn(
                f"{name}, {split} split: no picture is of class {listed}, so what is measured "
                "there says nothing of it",
                stacklevel=2,
            )
    if len(learned) < 2:
        raise UserError(
            f"{name}: all pictures to train on are of one class, there is nothing to learn"
        )
    return found


def labelled(
    pictures: Pictures, name: str, class_names: tuple[str, ...], config: DataConfig
) -> LazyLabelled:
    """The labelled pictures of a split; UserError that names the split when there are none.

    A model trained on ImageNet's random crops is given the centre crop (paper, section 3.1).
    """
    if pictures.labels is None:
        raise UserError(
            f"{name}: the pictures have no labels (in a folder, a metadata.csv has them, or two "
            "subfolders or more are classes; elsewhere --label-column names their column)"
        )
    if not (pictures.labels >= 0).any():
        raise UserError(f"{name}: none of the {len(pictures):,} pictures has a label")
    missing = np.flatnonzero(pictures.labels < 0)
    if len(missing):
        first = pictures.name(int(missing[0]))
        warnings.warn(
            f"{name}: left out {len(missing):,} pictures without a label, like {first}",
            stacklevel=2,
        )
        pictures = pictures.select(np.flatnonzero(pictures.labels >= 0))
    return LazyLabelled(pictures, class_names, evaluation_transform(config.augmentation))


def _class_names(name: str, splits: tuple[Pictures, ...]) -> tuple[str, ...]:
    """The source's class names, else the numbers up to the largest label."""
    named = next((part.class_names for part in splits if part.class_names is not None), None)
    if named is not None:
        return named
    present = {int(label) for p in splits if p.labels is not None for label in np.unique(p.labels)}
    if present == {-1, 1}:
        raise UserError(f"{name}: {MINUS_ONE}")
    largest = max(present, default=-1)
    if largest > LARGEST_LABEL:
        raise UserError(f"{name}: label {largest} is no class number; --label-column names another")
    return tuple(str(i) for i in range(largest + 1))


def unlabelled(n: int) -> npt.NDArray[np.int64]:
    """Which of n training pictures are used without their labels: always the same, sorted."""
    return np.sort(numpy_rng(0, "unlabelled").permutation(n)[:UNLABELLED])


def few_labels(
    labels: Labels, per_class: int, seed: int, names: Sequence[str] = ()
) -> npt.NDArray[np.int64]:
    """Indices of `per_class` random pictures of each class that occurs, sorted.

    Raises UserError for a class with fewer; the message has its name in `names`, if they are given.
    """
    chosen = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < per_class:
            name = names[label] if names else label
            raise UserError(
                f"class {name} has {len(of_class)} labelled pictures to train on, "
                f"{per_class} were asked for"
            )
        rng = numpy_rng(seed, "labels", int(label))
        chosen.append(rng.permutation(of_class)[:per_class])
    return np.sort(np.concatenate(chosen))
