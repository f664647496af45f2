"""Batches of a stream: shuffled in blocks, read ahead by one block, resumable to the bit.

A block is the next `shuffle_buffer` rows of the stream as raster tokens, two bytes a pixel, and it
is handed out in an order drawn from (seed, epoch, block). So the state to resume from is where the
block begins, which the `datasets` library can tell, and a place in the block. A rolling shuffle
buffer would not do, since the library does not save its contents.

At most two blocks are in memory: the one that is handed out, and the next one, which a thread reads
meanwhile and then holds.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from igpt.config import UserError
from igpt.data.augment import imagenet_crop, move_tokens
from igpt.data.decode import Transform, fit_square
from igpt.data.loader import Batch, Loader, State
from igpt.data.shards import ROWS, Reading, Row, Stream, decode_rows
from igpt.order import Codec
from igpt.rng import numpy_rng


@dataclass(frozen=True)
class Start:
    """Where a block begins."""

    epoch: int
    block: int  # its number in the epoch
    reading: State | None  # the stream's state there; None: the beginning of the epoch


@dataclass(frozen=True)
class Block:
    """Pictures that are shuffled together."""

    start: Start
    tokens: npt.NDArray[np.uint16]  # [N, T], raster order, as they came
    order: npt.NDArray[np.int64]  # [N], the shuffled order in which they are handed out


class StreamLoader(Loader):
    """Batches of a stream's next pictures, leaving out those whose digest is in `held_out`.

    `augmentation` is `none`, `flip`, `cifar` or `imagenet`. An unreadable picture is left out, and
    named once, in a warning and in `skipped`. `batch` raises UserError when the source breaks off
    and when an epoch has no picture.
    """

    def __init__(
        self,
        stream: Stream,
        held_out: Collection[bytes],
        codec: Codec,
        shuffle_buffer: int,
        seed: int,
        augmentation: str,
    ) -> None:
        super().__init__()
        self.stream, self.held_out, self.codec = stream, held_out, codec
        self.shuffle_buffer, self.seed, self.augmentation = shuffle_buffer, seed, augmentation
        self._reader = ThreadPoolExecutor(1)
        self._stop = threading.Event()
        self._begin(Start(0, 0, None), 0)

    def _begin(self, start: Start, place: int) -> None:
        self._blocks = self._read_blocks(start)
        self._next: Future[Block] | None = None  # the block that is read ahead
        self._block: Block | None = None
        self._place = place  # of the next picture, in the block's order

    def batch(self, step: int, rows: range) -> Batch:
        """The batch of the next step: as many of this process's pictures as there are `rows`."""
        moves = "none" if self.augmentation == "imagenet" else self.augmentation
        rng = numpy_rng(self.seed, "augment", step, rows.start)
        moved = move_tokens(self._take(len(rows)), self.codec.image_size, moves, rng)
        tokens = torch.from_numpy(self.codec.reorder(moved).astype(np.int64))
        return Batch(tokens, None, step, rows, self._state())

    def resume(self, states: Sequence[State]) -> None:
        """Go on from the processes' `states`; if their number changed, begin the epoch again."""
        if len(states) != self.stream.processes:
            epoch = max(state["epoch"] for state in states)
            warnings.warn(
                f"the stream was read by {len(states)} processes and is read by "
                f"{self.stream.processes} now: its epoch {epoch} begins again",
                stacklevel=2,
            )
            self._begin(Start(epoch, 0, None), 0)
            return
        own = states[self.stream.rank]
        self._begin(Start(own["epoch"], own["block"], own["reading"]), own["place"])

    def close(self) -> None:
        """Stop reading ahead."""
        self._stop.set()
        self._reader.shutdown(cancel_futures=True)

    # --- handing out -----------------------------------------------------------------------------

    def _take(self, count: int) -> npt.NDArray[np.uint16]:
        """Raster tokens [count, T] of the next pictures, from as many blocks as needed."""
        parts = []
        while count:
            block = self._block
            if block is None or (left := len(block.order) - self._place) <= 0:
                self._advance()
                continue
            chosen = block.order[self._place : self._place + min(left, count)]
            parts.append(block.tokens[chosen])
            self._place += len(chosen)
            count -= len(chosen)
        return np.concatenate(parts)

    def _advance(self) -> None:
        """Go to the next block, and begin to read the one after it."""
        if self._block is not None:
            self._place = 0
        following = self._next or self._read_ahead()
        self._block = following.result()
        self._next = self._read_ahead()

    def _read_ahead(self) -> Future[Block]:
        return self._reader.submit(next, self._blocks)

    def _state(self) -> State:
        assert self._block is not None
        start = self._block.start
        return {
            "epoch": start.epoch,
            "block": start.block,
            "reading": start.reading,
            "place": self._place,
        }

    # --- reading, on a thread of its own ---------------------------------------------------------

    def _read_blocks(self, start: Start) -> Iterator[Block]:
        """Every block from `start` on, epoch after epoch, without end."""
        epoch, number, state = start.epoch, start.block, start.reading
        while True:
            reading = self.stream.read_epoch(self.seed, epoch, state)
            found = number > 0
            while True:
                begins = Start(epoch, number, reading.state())
                rows, tokens = self._read(reading, epoch)
                if len(tokens):
                    rng = numpy_rng(self.seed, "stream", epoch, number)
                    yield Block(begins, tokens, rng.permutation(len(tokens)))
                    found = True
                if rows < self.shuffle_buffer:
                    break
                number += 1
            if self._stop.is_set():
                return
            if not found:
                raise UserError(self._nothing())
            epoch, number, state = epoch + 1, 0, None

    def _read(self, reading: Reading, epoch: int) -> tuple[int, npt.NDArray[np.uint16]]:
        """Read a block: its number of rows, and the tokens [N, T] of their pictures.

        There are fewer rows at the end of an epoch. N is smaller than their number where some are
        unreadable or held out.
        """
        tokens = np.empty((self.shuffle_buffer, self.codec.n_tokens), dtype=np.uint16)
        n_rows = n_pictures = 0
        while n_rows < self.shuffle_buffer and not self._stop.is_set():
            rows = reading.rows(min(ROWS, self.shuffle_buffer - n_rows))
            if not rows:
                break
            n_rows += len(rows)
            wanted = [row for row in rows if row.digest not in self.held_out]
            decoded = decode_rows(wanted, self.codec.image_size, partial(self._transform, epoch))
            self._skip(decoded.skipped)
            encoded = self.codec.raster_tokens(decoded.images)
            tokens[n_pictures : n_pictures + len(encoded)] = encoded
            n_pictures += len(encoded)
        return n_rows, tokens[:n_pictures]

    def _transform(self, epoch: int, row: Row) -> Transform:
        if self.augmentation != "imagenet":
            return fit_square
        rng = numpy_rng(self.seed, "augment", epoch, int.from_bytes(row.digest))
        return lambda image, size: imagenet_crop(image, size, rng)

    def _nothing(self) -> str:
        """The error message for an epoch without a picture."""
        if self.skipped:
            return f"{self.stream.name}: no picture can be read: {min(self.skipped)}"
        return (
            f"{self.stream.name} has no picture to train on for process {self.stream.rank} of "
            f"{self.stream.processes}, beside {len(self.held_out)} that are held out"
        )
