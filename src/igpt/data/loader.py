"""Batches addressed by step, so that a run needs only the step to resume.

(A stream cannot be addressed; its batches carry the state to resume from, see `stream`.)

Sample g = step * batch_size + row is picture g % n of epoch g // n, and each epoch has an order of
its own; a batch may straddle two epochs, so no picture is skipped or replayed.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

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


class Loader(Protocol):
    """Gives rows of the batch of any step, in any order.

    A loader with a state gives the batches of consecutive steps only.
    """

    skipped: set[str]  # names of pictures that it could not read so far

    def batch(self, step: int, rows: range) -> Batch: ...

    def resume(self, states: Sequence[State]) -> None:  # noqa: ARG002
        """Go on from the states of all processes' loaders, in the order of ranks."""
        return

    def close(self) -> None:
        """Stop what goes on in the background."""
        return


def epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which epoch `epoch` visits n pictures, [n]."""
    return numpy_rng(seed, "epoch", epoch).permutation(n)


class _Addresses:
    """Tells which picture is at which row of a step's batch."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        # A batch needs one epoch's order, or a few where it straddles them.
        self._order = lru_cache(maxsize=4)(lambda epoch: epoch_order(n, seed, epoch))

    def pictures(self, step: int, rows: range) -> npt.NDArray[np.int64]:
        """Indexes [len(rows)] of the pictures."""
        samples = (divmod(step * self.batch_size + row, self.n) for row in rows)
        return np.array([self._order(epoch)[place] for epoch, place in samples], dtype=np.int64)


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
        self.tokens, self.labels, self.codec = raster_tokens, labels, codec
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self.skipped: set[str] = set()  # stays empty: all pictures were decoded before
        self._addresses = _Addresses(len(raster_tokens), batch_size, seed)

    def batch(self, step: int, rows: range) -> Batch:
        """Those rows of the step's batch."""
        every = self._addresses.pictures(step, range(self.batch_size))
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
        self.pictures, self.codec, self.view = pictures, codec, view
        self.seed = seed
        self.skipped: set[str] = set()
        self._addresses = _Addresses(len(pictures), batch_size, seed)
        self._pool = ThreadPoolExecutor()

    def batch(self, step: int, rows: range) -> Batch:
        """Those rows of the step's batch."""
        chosen = self._addresses.pictures(step, rows)
        size = self.codec.image_size
        images = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        places = np.empty(len(rows), dtype=np.int64)
        views = self._pool.map(self._show, [step] * len(rows), rows, chosen.tolist())
        for i, (image, place, unreadable) in enumerate(views):
            images[i], places[i] = image, place
            self._name(unreadable)
        labels = self.pictures.labels
        return Batch(
            torch.from_numpy(self.codec.encode(images)),
            None if labels is None else torch.from_numpy(labels[places]),
            step,
            rows,
        )

    def close(self) -> None:
        """Stop the threads that decode."""
        self._pool.shutdown(cancel_futures=True)

    def _show(self, step: int, row: int, place: int) -> tuple[Pixels, int, dict[str, str]]:
        """The row's view, the index of its picture, and errors of unreadable ones tried before."""
        rng = numpy_rng(self.seed, "augment", step, row)
        unreadable: dict[str, str] = {}
        for _ in range(1 + REPLACEMENTS):
            try:
                image = read_rgb(self.pictures, place)
                return self.view(image, self.codec.image_size, rng), place, unreadable
            except UnreadablePicture as error:
                unreadable[self.pictures.name(place)] = str(error)
                place = int(rng.integers(len(self.pictures)))
        first = next(iter(unreadable.values()))
        raise UserError(f"{1 + REPLACEMENTS} pictures in a row cannot be read: {first}")

    def _name(self, unreadable: dict[str, str]) -> None:
        for name, error in unreadable.items():
            if name not in self.skipped:
                self.skipped.add(name)
                warnings.warn(f"skipped an unreadable picture: {error}", stacklevel=3)


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
