"""Batches addressed by step, so that a run needs only the step to resume.

(A stream cannot be addressed; its batches carry the state to resume from, see `stream`.)

Sample g = step * batch_size + row is picture g % n of epoch g // n, and each epoch has an order of
its own; a batch may straddle two epochs, so no picture is skipped or replayed.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from igpt.config import UserError
from igpt.data.augment import View, move_tokens
from igpt.data.decode import read_rgb
from igpt.data.pictures import Pictures, UnreadablePicture
from igpt.device import ready_to_copy
from igpt.order import Codec
from igpt.rng import numpy_rng
from igpt.types import Pixels

State = dict[str, Any]  # what a loader resumes from if the step is not enough; JSON can hold it

REPLACEMENTS = 100  # other pictures tried in place of an unreadable one


@dataclass(frozen=True)
class Batch:
    """What one step, or a process's share of it, is trained on."""

    tokens: torch.Tensor  # int64 [B, T], in the model's order
    labels: torch.Tensor | None  # int64 [B]
    step: int
    rows: range  # places of these pictures in the step's global batch
    state: State | None = None  # what a loader with a state goes on from after this batch


class Loader(ABC):
    """Gives rows of the batch of any step, in any order.

    A loader with a state gives the batches of consecutive steps only.
    """

    def __init__(self) -> None:
        self.skipped: set[str] = set()  # pictures that it could not read so far, and why

    @abstractmethod
    def batch(self, step: int, rows: range) -> Batch: ...

    def _skip(self, pictures: Iterable[str]) -> None:
        """Name unreadable pictures, each once."""
        for picture in pictures:
            if picture not in self.skipped:
                self.skipped.add(picture)
                warnings.warn(f"skipped an unreadable picture: {picture}", stacklevel=3)

    def resume(self, states: Sequence[State]) -> None:  # noqa: ARG002
        """Go on from the states of all processes' loaders, in the order of ranks."""
        return

    def close(self) -> None:
        """Stop what goes on in the background."""
        return


@lru_cache(maxsize=4)  # a batch needs one epoch's order, or a few where it straddles them
def epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which epoch `epoch` visits n pictures, [n]."""
    return numpy_rng(seed, "epoch", epoch).permutation(n)


def pictures_at(n: int, seed: int, samples: range) -> npt.NDArray[np.int64]:
    """Which of n pictures the run's `samples` are, counted from its first step on."""
    places = (divmod(sample, n) for sample in samples)
    return np.array([epoch_order(n, seed, epoch)[i] for epoch, i in places], dtype=np.int64)


class TokenLoader(Loader):
    """A set that was encoded once: raster tokens [N, T], augmented by moving them.

    `augmentation` is `none`, `flip` or `cifar`; labels are int64 [N].
    """

    def __init__(
        self,
        raster_tokens: npt.NDArray[np.uint16],
        labels: npt.NDArray[np.int64] | None,
        codec: Codec,
        batch_size: int,
        seed: int,
        augmentation: str,
    ) -> None:
        super().__init__()
        self.tokens, self.labels, self.codec = raster_tokens, labels, codec
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation

    def batch(self, step: int, rows: range) -> Batch:
        """Those rows of the step's batch."""
        start = step * self.batch_size
        every = pictures_at(len(self.tokens), self.seed, range(start, start + self.batch_size))
        rng = numpy_rng(self.seed, "augment", step)
        # All rows are augmented, so that a row does not depend on which rows this process takes.
        moved = move_tokens(self.tokens[every], self.codec.image_size, self.augmentation, rng)
        share = np.array(rows, dtype=np.int64)
        tokens = self.codec.reorder(moved[share]).astype(np.int64)
        labels = None if self.labels is None else torch.from_numpy(self.labels[every[share]])
        return Batch(torch.from_numpy(tokens), labels, step, rows)


class PictureLoader(Loader):
    """Pictures decoded at each step, shown as `view` makes them (crops); never all in memory.

    An unreadable picture is replaced by another, drawn from (seed, step, row), and named once, in a
    warning and in `skipped`. `batch` raises UserError when no readable one is found.
    """

    def __init__(
        self, pictures: Pictures, codec: Codec, batch_size: int, seed: int, view: View
    ) -> None:
        super().__init__()
        self.pictures, self.codec, self.view = pictures, codec, view
        self.batch_size, self.seed = batch_size, seed
        self._pool = ThreadPoolExecutor()

    def batch(self, step: int, rows: range) -> Batch:
        """Those rows of the step's batch."""
        start = step * self.batch_size
        samples = range(start + rows.start, start + rows.stop, rows.step)
        chosen = pictures_at(len(self.pictures), self.seed, samples)
        size = self.codec.image_size
        images = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        places = np.empty(len(rows), dtype=np.int64)
        views = self._pool.map(self._show, [step] * len(rows), rows, chosen.tolist())
        for i, (image, place, unreadable) in enumerate(views):
            images[i], places[i] = image, place
            self._skip(unreadable)
        labels = self.pictures.labels
        return Batch(
            torch.from_numpy(self.codec.encode(images).astype(np.int64)),
            None if labels is None else torch.from_numpy(labels[places]),
            step,
            rows,
        )

    def close(self) -> None:
        """Stop the threads that decode."""
        self._pool.shutdown(cancel_futures=True)

    def _show(self, step: int, row: int, place: int) -> tuple[Pixels, int, list[str]]:
        """The row's view, the index of its picture, and errors of unreadable ones tried before."""
        rng = numpy_rng(self.seed, "augment", step, row)
        unreadable: list[str] = []
        for _ in range(1 + REPLACEMENTS):
            try:
                image = read_rgb(self.pictures, place)
                return self.view(image, self.codec.image_size, rng), place, unreadable
            except UnreadablePicture as error:
                unreadable.append(str(error))
                place = int(rng.integers(len(self.pictures)))
        raise UserError(f"{1 + REPLACEMENTS} pictures in a row cannot be read: {unreadable[0]}")


def prefetch(loader: Loader, steps: Iterable[int], rows: range) -> Generator[Future[Batch]]:
    """Those rows of the batches of `steps`, each made while the one before is used.

    They are futures: the caller waits for a batch only when it takes the result, and may stop
    early without waiting for the next one.
    """

    def make(step: int) -> Batch:
        batch = loader.batch(step, rows)
        labels = None if batch.labels is None else ready_to_copy(batch.labels)
        return replace(batch, tokens=ready_to_copy(batch.tokens), labels=labels)

    pool = ThreadPoolExecutor(1)
    try:
        pending = None
        for step in steps:
            following = pool.submit(make, step)
            if pending is not None:
                yield pending
            pending = following
        if pending is not None:
            yield pending
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
