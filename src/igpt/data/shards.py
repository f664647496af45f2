"""Sources that are read as a stream, by the `datasets` library: shards here or at any URL.

A stream is a split that is read from its first picture to its last, as often as asked, and never
loaded whole. The library opens it, orders its shards anew for every epoch, divides it over
processes, and tells how far it was read.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from igpt.config import DataConfig, UserError
from igpt.data.decode import CHUNK, Transform, decode_each
from igpt.data.folders import picture_folder, split_files, stream_order
from igpt.data.hub import (
    image_column_of,
    label_column_of,
    read_named,
    reason,
    require_plain_path,
    split_patterns,
)
from igpt.data.loader import State
from igpt.data.metadata import USUAL_LABELS
from igpt.data.pictures import Pictures, as_text
from igpt.data.sources import is_hub_id, shard_builder
from igpt.data.splits import check_split_names, validation_name
from igpt.order import need_pixels
from igpt.rng import numpy_rng
from igpt.types import Pixels

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # numbered shards, in WebDataset's notation
ROWS = 4 * CHUNK  # rows that are read at a time, and then decoded on four threads


@dataclass(frozen=True)
class Row:
    """A picture of a stream, still encoded as in its file."""

    name: str
    data: bytes
    digest: bytes  # of `data`: identifies the picture in whatever order the stream is read
    label: int | str | None = None

    def image(self) -> Image.Image:
        """The picture, not yet decoded; ValueError where there is none."""
        if not self.data:
            raise ValueError("no picture in this row")
        return Image.open(io.BytesIO(self.data))


@dataclass(frozen=True)
class DecodedRows:
    """The readable pictures among some rows."""

    images: Pixels  # [M, S, S, 3]
    digests: list[bytes]  # [M]
    skipped: list[str]  # names of the others, and why


class Reading:
    """One pass through a stream, from its beginning or from the `state` of another reading."""

    def __init__(
        self, name: str, dataset: Any, column: str, label: str | None, state: State | None
    ) -> None:
        self.name, self._dataset, self._column, self._label = name, dataset, column, label
        self._state = state
        if state is not None:
            dataset.load_state_dict(state)
        self._rows = iter(dataset)
        self._last = "its beginning"

    def state(self) -> State | None:
        """The state after the rows read so far, to read the stream on from; None: its beginning."""
        return self._state

    def rows(self, count: int) -> list[Row]:
        """The next `count` rows, fewer at the end; UserError when the source breaks off."""
        try:
            found = [self._row(item) for item in islice(self._rows, count)]
        except Exception as error:  # from the library, pyarrow, tarfile or a server's client
            raise UserError(f"{self.name} broke off after {self._last}: {reason(error)}") from error
        if found:
            self._state = self._dataset.state_dict()
        return found

    def _row(self, item: dict[str, Any]) -> Row:
        picture = item[self._column] or {}
        data, path = picture.get("bytes"), picture.get("path")
        if data is None:
            data = read_named(path) if path else b""
        digest = hashlib.blake2b(data, digest_size=8).digest()
        self._last = as_text(path or f"{self.name}[{digest.hex()}]")
        return Row(self._last, data, digest, None if self._label is None else item[self._label])


@dataclass(frozen=True)
class Stream:
    """One split, or the part of it that one of several processes reads."""

    name: str
    dataset: Any  # datasets.IterableDataset
    column: str  # of the pictures
    label: str | None = None  # the column of the labels, if they are read
    files: tuple[str, ...] = ()  # its shards, if the source is a path or URL of shards
    rank: int = 0
    processes: int = 1

    def file(self, number: int) -> Stream:
        """The part that lies in one of the `files`."""
        dataset = self.dataset.shard(len(self.files), number)
        name = self.files[number].rpartition("/")[2]
        return replace(self, name=name, dataset=dataset, files=self.files[number : number + 1])

    def share(self, rank: int, processes: int) -> Stream:
        """The part of one of several processes: whole shards if all processes can have the same
        number of them, or else every n-th picture of all shards."""
        return replace(self, rank=rank, processes=processes)

    def read(self, state: State | None = None) -> Reading:
        """Read the shards in their own order."""
        return self._read(0, state)

    def read_epoch(self, seed: int, epoch: int, state: State | None = None) -> Reading:
        """Read the shards in an order drawn from (seed, epoch)."""
        return self._read(int(numpy_rng(seed, "stream", epoch).integers(1, 1 << 31)), state)

    def _read(self, order: int, state: State | None) -> Reading:
        from datasets.distributed import split_dataset_by_node

        dataset = split_dataset_by_node(self.dataset, self.rank, self.processes)  # a new object
        dataset.set_epoch(order)  # 0: the shards' own order
        return Reading(self.name, dataset, self.column, self.label, state)


def decode_rows(
    rows: Sequence[Row], size: int, transform_of: Callable[[Row], Transform]
) -> DecodedRows:
    """The readable ones of `rows`, each brought to `size` by what `transform_of` gives for it."""
    pictures = Pictures(len(rows), lambda i: rows[i].image(), lambda i: rows[i].name)
    decoded = decode_each(pictures, size, lambda i: transform_of(rows[i]))
    return DecodedRows(
        need_pixels(decoded.images), [rows[i].digest for i in decoded.kept], decoded.skipped
    )


def next_pictures(reading: Reading, count: int, size: int, transform: Transform) -> DecodedRows:
    """The next `count` readable pictures of a reading, or all that are left."""
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    digests: list[bytes] = []
    skipped: list[str] = []
    while (found := len(digests)) < count and (rows := reading.rows(min(ROWS, count - found))):
        part = decode_rows(rows, size, lambda _: transform)
        images[found : found + len(part.images)] = part.images
        digests += part.digests
        skipped += part.skipped
    return DecodedRows(images[: len(digests)], digests, skipped)


# --- opening -------------------------------------------------------------------------------------


def open_streams(config: DataConfig) -> tuple[Stream, Stream | None]:
    """The training split and the validation split, if there is one, of a recipe's data section.

    The source is a Hub id, a folder of pictures or of what `datasets` can load, or shards in
    WebDataset's format or in parquet: a path or an fsspec URL, with `*` or `{000..127}` for
    several. Raises UserError when there is no such thing, or it has no column of pictures.
    """
    spec = config.source
    check_split_names(config)
    splits, _ = _named(spec, lambda: _load(spec))
    if config.train_split not in splits:
        raise UserError(f"{spec} has no split '{config.train_split}', only: {', '.join(splits)}")
    train = _stream(splits[config.train_split], spec, config.image_column)
    name = validation_name(tuple(splits), config)
    if name is None:
        return train, None
    if name not in splits:
        raise UserError(f"{spec} has no split '{name}', only: {', '.join(splits)}")
    return train, _stream(splits[name], f"{spec}/{name}", config.image_column)


def open_shards(spec: str, image_column: str | None, label_column: str | None) -> Stream:
    """Shards by their path or URL as one stream that knows its files, with labels if it has any.

    Raises UserError as `open_streams`, and for labels that are no classes.
    """
    splits, files = _named(spec, lambda: _load(spec))
    features = splits["train"].features or {}
    label = label_column_of(features, spec, label_column)
    if label is None and (strange := [name for name in USUAL_LABELS if name in features]):
        warnings.warn(
            f"{spec}: '{strange[0]}' holds neither whole numbers nor names, and is left out (of a "
            "folder, whole numbers of which some are missing are read)",
            stacklevel=2,
        )
    return _stream(splits["train"], spec, image_column, label, files)


def _load(spec: str) -> tuple[Any, tuple[str, ...]]:
    """Splits by name, each a `datasets.IterableDataset`, and the files of shards."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors become ours
    builder = shard_builder(spec)
    if builder is not None:
        shards = _files(spec)
        splits = datasets.load_dataset(builder, data_files={"train": shards}, streaming=True)
        return splits, tuple(shards)
    if Path(spec).is_dir() and (found := picture_folder(Path(spec))):
        return {
            split: _stream_of_files([of_split[i] for i in stream_order(found.root, of_split)])
            for split, of_split in split_files(found.root, found.files).items()
        }, ()
    if Path(spec).is_dir() or is_hub_id(spec):
        require_plain_path(spec)
        return datasets.load_dataset(spec, data_files=split_patterns(spec), streaming=True), ()
    raise UserError(
        f"no stream at '{spec}': expected a Hub id, a folder, or .tar or .parquet shards by their "
        "path or URL"
    )


def _stream_of_files(files: Sequence[Path]) -> Any:
    """Picture files as a stream, in which each of them is a shard."""
    import datasets

    def rows(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        for path in paths:
            yield {"image": {"path": path, "bytes": None}}

    features = datasets.Features({"image": datasets.Image()})
    paths = [str(file.absolute()) for file in files]
    return datasets.IterableDataset.from_generator(
        rows, features=features, gen_kwargs={"paths": paths}
    )


def _files(spec: str) -> list[str]:
    """The files that a path or URL stands for, in the order in which the library reads them."""
    from datasets.data_files import DataFilesList

    patterns = _numbered(spec)
    if "://" not in spec and not all(glob(path) for path in patterns):
        raise UserError(f"no file {next(path for path in patterns if not glob(path))}")
    files: list[str] = DataFilesList.from_local_or_remote(patterns)
    if not files:
        raise UserError(f"no file {spec}")
    return files


def _numbered(spec: str) -> list[str]:
    """The paths that a range like {000..127} stands for."""
    match = RANGE.search(spec)
    if match is None:
        return [spec]
    first, last = match.groups()
    numbers = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    return [spec[: match.start()] + number + spec[match.end() :] for number in numbers]


def _stream(
    dataset: Any,
    name: str,
    column: str | None,
    label: str | None = None,
    files: tuple[str, ...] = (),
) -> Stream:
    import datasets

    if dataset.features is None:
        raise UserError(f"{name}: its columns are not known before it is read")
    column = image_column_of(dataset.features, name, column)
    columns = [column] if label is None else [column, label]
    plain = _named(
        name,
        lambda: dataset.select_columns(columns).cast_column(column, datasets.Image(decode=False)),
    )
    return Stream(name, plain, column, label, files)


def _named(name: str, act: Callable[[], Any]) -> Any:
    """What `act` returns, or the library's error as a UserError."""
    try:
        return act()
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{name}: {reason(error)} (pip install 'fsspec[s3,gcs,http]')") from error
    except Exception as error:  # builders raise anything on data that they cannot read
        raise UserError(f"no stream of pictures at {name}: {reason(error)}") from error
