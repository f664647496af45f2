"""Any source of pictures, resized once into shards that `pretrain` and the `datasets` library read.

    out/
      data/train-00000-of-00128.parquet   columns `image` (PNG) and `label`
      manifest.json                       every shard: pictures, bytes, SHA-256, skipped pictures
      .shards/                            the same of each finished shard, and the settings

The work is cut into pieces, and several machines share it by taking every n-th piece each. A piece
of a set becomes one shard. A piece of a stream is a file of unknown length, which becomes as many
shards as it takes: train-00007-of-00128, train-00007-of-00128_00001, and so on. A shard's contents
depend only on its name, and it gets the name when it is complete: a call after one that was killed
makes just the missing shards.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from PIL import Image

from igpt.config import Say, UserError
from igpt.console import print_line
from igpt.data.decode import fit_square
from igpt.data.pictures import UnreadablePicture
from igpt.data.pieces import Cut, Item, cut_source
from igpt.disk import read_json, remove_left, write_atomically, write_json

MANIFEST, DATA, FINISHED = "manifest.json", "data", ".shards"
SETTINGS = "settings.json"
MOST_PIECES = 100_000  # the five digits of 00007-of-00128


@dataclass(frozen=True)
class Piece:
    """A part of a split that one process makes into shards."""

    split: str
    number: int
    of: int

    def shard(self, number: int) -> str:
        """The piece's shard `number`, named for `datasets`, which reads the split from the name."""
        name = f"{self.split}-{self.number:05d}-of-{self.of:05d}"
        return f"{name}_{number:05d}" if number else name


@dataclass(frozen=True)
class Finished:
    """A shard on the disk."""

    file: str
    pictures: int
    bytes: int
    sha256: str
    skipped: list[str]  # unreadable pictures, and why
    last: bool = True  # whether it is the last of its piece


@dataclass(frozen=True)
class Totals:
    """What a folder of shards holds."""

    pictures: int
    skipped: int
    shards: int
    missing: int  # pieces that are not complete yet: those of the work's other parts


@dataclass(frozen=True)
class Preparation:
    """A source, the size of its pictures, and where its shards go."""

    source: str  # as `--data` takes it
    image_size: int
    out: Path
    image_column: str | None = None
    label_column: str | None = None
    shard_pictures: int = 10_000  # of a shard at most; about 25 MB of 32x32 PNGs

    @cached_property
    def _splits(self) -> dict[str, Cut]:
        return cut_source(self.source, self.image_column, self.label_column, self.shard_pictures)

    def pieces(self) -> list[Piece]:
        """All pieces of all splits; UserError when the source cannot be opened or has no pixels."""
        if most := [name for name, cut in self._splits.items() if cut.pieces > MOST_PIECES]:
            raise UserError(
                f"{most[0]} would be more than {MOST_PIECES:,} shards, which the `datasets` "
                "library does not number: give a larger --shard-pictures, or larger files"
            )
        return [
            Piece(split, number, cut.pieces)
            for split, cut in self._splits.items()
            for number in range(cut.pieces)
        ]

    def write(self, piece: Piece) -> list[Finished]:
        """Make a piece's missing shards, with notes that they are finished; returns all of them."""
        cut, made = self._splits[piece.split], self.finished(piece)
        items = _Ahead(cut.read(piece.number))
        deque(islice(items, len(made) * self.shard_pictures), maxlen=0)  # skipped without decoding
        while not is_whole(made):
            made.append(self._make(piece.shard(len(made)), items, cut.label))
        return made

    def _make(self, name: str, items: _Ahead, label: Any) -> Finished:
        """Make a shard of the next of `items`."""
        rows, skipped = [], []
        for item in islice(items, self.shard_pictures):
            try:
                pixels = fit_square(item.open_rgb(), self.image_size)
            except UnreadablePicture as error:
                skipped.append(str(error))
                continue
            picture = {"bytes": _png(Image.fromarray(pixels)), "path": item.name}
            rows.append({"image": picture, "label": item.label})
        path = self.out / DATA / f"{name}.parquet"
        remove_left(path.parent, path.name)
        write_atomically(path, lambda file: _write_parquet(file, rows, label))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        relative, size = path.relative_to(self.out).as_posix(), path.stat().st_size
        shard = Finished(relative, len(rows), size, digest, skipped, items.ended)
        write_json(self._note(name), asdict(shard))
        return shard

    def finished(self, piece: Piece) -> list[Finished]:
        """The finished shards of a piece, up to the first that is not complete on the disk."""
        found: list[Finished] = []
        while not is_whole(found) and (shard := self._noted(piece.shard(len(found)))):
            found.append(shard)
        return found

    def _noted(self, name: str) -> Finished | None:
        note = self._note(name)
        if not note.is_file():
            return None
        shard = Finished(**read_json(note))
        path = self.out / shard.file
        return shard if path.is_file() and path.stat().st_size == shard.bytes else None

    def settings(self) -> dict[str, Any]:
        """All that the shards' bytes depend on."""
        own = {key: value for key, value in asdict(self).items() if key != "out"}
        return {**own, "splits": {name: cut.extent for name, cut in self._splits.items()}}

    def claim(self) -> None:
        """Record the settings in `out`; UserError when other settings or files are there."""
        path = self.out / FINISHED / SETTINGS
        source, out = Path(self.source).resolve(), self.out.resolve()
        if self.source != "digits" and source.is_dir() and source in (out, *out.parents):
            raise UserError(
                f"{self.out} is among the pictures of {self.source}: choose another --out"
            )
        if not path.exists():
            # FINISHED may be there without settings: another call was killed here, or is here now.
            if self.out.exists() and {entry.name for entry in self.out.iterdir()} - {FINISHED}:
                raise UserError(f"{self.out} is not empty, and was not made by `igpt prepare`")
            write_json(path, self.settings())
        theirs = read_json(path)
        for key, value in self.settings().items():
            if theirs.get(key) != value:
                raise UserError(
                    f"{self.out} was prepared with {key} {theirs.get(key)}, not {value}: "
                    "choose another --out"
                )

    def _note(self, name: str) -> Path:
        return self.out / FINISHED / f"{name}.json"


def is_whole(shards: Sequence[Finished]) -> bool:
    """Whether `shards`, the first ones of a piece, are all of it."""
    return bool(shards) and shards[-1].last


class _Ahead:
    """Iterates over pictures one ahead, so that `ended` tells whether there is another."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._next = next(items, None)

    @property
    def ended(self) -> bool:
        return self._next is None

    def __iter__(self) -> Iterator[Item]:
        while self._next is not None:
            item, self._next = self._next, next(self._items, None)
            yield item


def prepare(work: Preparation, *, workers: int, part: tuple[int, int], say: Say) -> Totals:
    """Write the missing shards, with `workers` processes, and the manifest once all are there.

    `part` (i, n) takes pieces i, i + n, and so on, so that n machines with one file system can work
    side by side. Raises UserError for a folder with something else in it, for a full disk, and for
    a stream that breaks off; finished shards are kept, and the same call goes on from there.
    """
    pieces = work.pieces()
    work.claim()
    ours = pieces[part[0] :: part[1]]
    mine = [piece for piece in ours if not is_whole(work.finished(piece))]
    if kept := len(ours) - len(mine):
        say(f"{kept} of {len(ours)} pieces are there from an earlier call, and stay as they are")
    with _map(work, min(workers, len(mine))) as run:
        for piece, made in zip(mine, run(mine), strict=True):
            pictures, skipped = _count(made)
            lost = f", {skipped} skipped" if skipped else ""
            say(f"{piece.shard(0)}: {pictures:,} pictures{lost}")
    done = [work.finished(piece) for piece in pieces]
    shards = [shard for made in done for shard in made]
    missing = sum(not is_whole(made) for made in done)
    if not missing:
        if not any(shard.pictures for shard in shards):
            first = next((name for shard in shards for name in shard.skipped), "there are none")
            raise UserError(f"no picture of {work.source} can be read: {first}")
        rows = [asdict(shard) for shard in shards]
        write_json(work.out / MANIFEST, {**work.settings(), "shards": rows})
    return Totals(*_count(shards), len(shards), missing)


def _count(shards: Sequence[Finished]) -> tuple[int, int]:
    """Pictures, and those that were skipped."""
    return sum(shard.pictures for shard in shards), sum(len(shard.skipped) for shard in shards)


@contextmanager
def _map(
    work: Preparation, workers: int
) -> Iterator[Callable[[Sequence[Piece]], Iterator[list[Finished]]]]:
    """A function that maps `work.write` over pieces: here, or in processes that each open the
    source once.
    """
    if workers <= 1:
        yield lambda pieces: map(work.write, pieces)
        return
    fresh, context = replace(work), get_context("spawn")  # without the source that is open here
    parent, hold = context.Pipe(duplex=False)  # workers end once `hold` is closed, as by our end
    pool = ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(fresh, parent)
    )
    try:
        yield lambda pieces: pool.map(_write_piece, pieces)
    except KeyboardInterrupt:
        hold.close()  # or the pool would wait for the pieces that were handed out
        raise
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, of memory perhaps; finished shards are kept, run it again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Preparation  # of this worker process; its source stays open between pieces


def _start_worker(work: Preparation, parent: Connection) -> None:
    global _worker
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it
    warnings.showwarning = lambda message, *_args, **_kwargs: print_line(
        f"warning: {message}", sys.stderr
    )
    _worker = work


def _end_with(parent: Connection) -> None:
    """End this process when the parent process lets go of its workers, or is killed."""
    wait([parent])
    os._exit(1)


def _write_piece(piece: Piece) -> list[Finished]:
    return _worker.write(piece)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _write_parquet(file: Path, rows: list[dict[str, Any]], label: Any) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    features = {"image": datasets.Image()}
    if label is not None:
        features["label"] = label
    # Not through `datasets.Dataset`, which drops the bytes of a picture whose path exists.
    schema = datasets.Features(features).arrow_schema
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file)
