"""Any source of pictures, resized once into shards that `pretrain` and the `datasets` library read.

    out/
      data/train-00000-of-00128.parquet   columns `image` (PNG) and `label`
      manifest.json                       every shard: pictures, bytes, SHA-256, skipped pictures
      .shards/                            the same of each finished shard, and the settings

What a shard holds is a function of its number, and it is renamed to its name when it is whole: a
call that was killed goes on with the shards that are missing, and several machines share the work
by taking every n-th shard each.
"""

from __future__ import annotations

import hashlib
import io
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from igpt.config import UserError
from igpt.data import Pictures, Source, UnreadablePicture, fit_square, open_source
from igpt.data.decode import read_rgb
from igpt.disk import write_atomically

MANIFEST, DATA, FINISHED = "manifest.json", "data", ".shards"
SETTINGS = "settings.json"

Say = Callable[[str], None]
Work = Callable[["Shard"], "Finished"]


@dataclass(frozen=True)
class Shard:
    """Pictures `start` to `stop` of a split."""

    split: str
    number: int
    of: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """As the `datasets` library names shards: the split is read off it."""
        return f"{self.split}-{self.number:05d}-of-{self.of:05d}"


@dataclass(frozen=True)
class Finished:
    """A shard on the disk."""

    file: str
    pictures: int
    bytes: int
    sha256: str
    skipped: list[str]  # unreadable pictures, and why


@dataclass(frozen=True)
class Totals:
    """What a folder of shards holds."""

    pictures: int
    skipped: int
    shards: int
    missing: int  # shards that another part of the work has yet to make


@dataclass(frozen=True)
class Preparation:
    """A source, the size of its pictures, and where its shards go."""

    source: str  # as `--data` takes it
    image_size: int
    out: Path
    image_column: str | None = None
    label_column: str | None = None
    shard_pictures: int = 10_000  # at most; about 25 MB of 32x32 PNGs

    @cached_property
    def _opened(self) -> Source:
        return open_source(
            self.source, image_column=self.image_column, label_column=self.label_column
        )

    @cached_property
    def _splits(self) -> dict[str, Pictures]:
        return {name: self._opened.split(name) for name in self._opened.splits}

    def shards(self) -> list[Shard]:
        """All shards of all splits; UserError for a source that has tokens and no pixels."""
        found = []
        for split, pictures in self._splits.items():
            if pictures.encoded is not None:
                raise UserError(f"{self.source} is encoded already: there are no pixels to resize")
            starts = range(0, len(pictures), self.shard_pictures)
            for number, start in enumerate(starts):
                stop = min(start + self.shard_pictures, len(pictures))
                found.append(Shard(split, number, len(starts), start, stop))
        return found

    def write(self, shard: Shard) -> Finished:
        """Resize a shard's pictures and write it, then the note that says that it is finished."""
        pictures = self._splits[shard.split]
        rows, labels, skipped = [], [], []
        for i in range(shard.start, shard.stop):
            try:
                pixels = fit_square(read_rgb(pictures, i), self.image_size)
            except UnreadablePicture as error:
                skipped.append(str(error))
                continue
            name = pictures.name(i).removeprefix(f"{self.source}/")
            rows.append({"bytes": _png(Image.fromarray(pixels)), "path": name})
            labels.append(None if pictures.labels is None else int(pictures.labels[i]))
        path = self.out / DATA / f"{shard.name}.parquet"
        write_atomically(path, lambda file: _write_parquet(file, rows, labels, pictures))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        relative = str(path.relative_to(self.out))
        finished = Finished(relative, len(rows), path.stat().st_size, digest, skipped)
        _write_json(self._note(shard), asdict(finished))
        return finished

    def finished(self, shard: Shard) -> Finished | None:
        """The shard, if it is whole on the disk."""
        note = self._note(shard)
        if not note.is_file():
            return None
        found = Finished(**json.loads(note.read_text()))
        path = self.out / found.file
        return found if path.is_file() and path.stat().st_size == found.bytes else None

    def settings(self) -> dict[str, Any]:
        """What decides the shards' bytes."""
        own = {key: value for key, value in asdict(self).items() if key != "out"}
        return {**own, "splits": {name: len(part) for name, part in self._splits.items()}}

    def claim(self) -> None:
        """Make the folder this preparation's; UserError when it is another's."""
        path = self.out / FINISHED / SETTINGS
        if not path.exists():
            if self.out.exists() and any(self.out.iterdir()):
                raise UserError(f"{self.out} is not empty, and was not made by `igpt prepare`")
            _write_json(path, self.settings())
        theirs = json.loads(path.read_text())
        for key, value in self.settings().items():
            if theirs.get(key) != value:
                raise UserError(
                    f"{self.out} was prepared with {key} {theirs.get(key)}, not {value}: "
                    "choose another --out"
                )

    def _note(self, shard: Shard) -> Path:
        return self.out / FINISHED / f"{shard.name}.json"


def prepare(work: Preparation, *, workers: int, part: tuple[int, int], say: Say) -> Totals:
    """Write the shards that are missing, with `workers` processes; a manifest when all are there.

    `part` (i, n) takes shards i, i + n, and so on, so that n machines with one file system can work
    side by side. Raises UserError for a folder that something else is in, and for a full disk;
    finished shards are kept, and the same call goes on from there.
    """
    shards = work.shards()
    work.claim()
    mine = [shard for shard in shards[part[0] :: part[1]] if work.finished(shard) is None]
    with _map(work, workers) as run:
        for shard, finished in zip(mine, run(mine), strict=True):
            lost = f", {len(finished.skipped)} skipped" if finished.skipped else ""
            say(f"{shard.name}: {finished.pictures:,} pictures{lost}")
    done = {shard: work.finished(shard) for shard in shards}
    found = [finished for finished in done.values() if finished is not None]
    if len(found) == len(shards):
        rows = [asdict(finished) for finished in found]
        _write_json(work.out / MANIFEST, {**work.settings(), "shards": rows})
    pictures = sum(finished.pictures for finished in found)
    skipped = sum(len(finished.skipped) for finished in found)
    return Totals(pictures, skipped, len(shards), len(shards) - len(found))


@contextmanager
def _map(
    work: Preparation, workers: int
) -> Iterator[Callable[[Sequence[Shard]], Iterator[Finished]]]:
    """`work.write` over shards, here or in processes that each open the source once."""
    if workers == 1:
        yield lambda shards: map(work.write, shards)
        return
    fresh = Preparation(**{**asdict(work), "out": work.out})  # nothing opened travels
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start_worker, initargs=(fresh,)
    )
    try:
        yield lambda shards: pool.map(_write_shard, shards)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, of memory perhaps; finished shards are kept, run it again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Preparation  # of this process, whose source stays open between shards


def _start_worker(work: Preparation) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    _worker = work


def _write_shard(shard: Shard) -> Finished:
    return _worker.write(shard)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _write_parquet(
    file: Path, rows: list[dict[str, Any]], labels: list[int | None], pictures: Pictures
) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, list[Any]] = {"image": rows}
    features: dict[str, Any] = {"image": datasets.Image()}
    if pictures.labels is not None:
        names = pictures.class_names
        columns["label"] = [None if label == -1 else label for label in labels]
        features["label"] = (
            datasets.Value("int64") if names is None else datasets.ClassLabel(names=list(names))
        )
    # Not by `datasets.Dataset`: it drops the bytes of a picture whose path exists.
    schema = datasets.Features(features).arrow_schema
    pyarrow.parquet.write_table(pyarrow.Table.from_pydict(columns, schema=schema), file)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n"))
