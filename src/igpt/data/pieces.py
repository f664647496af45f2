"""A source cut into pieces, so that several processes can share the work of reading it.

A piece of a set is a fixed number of its pictures. Shards are read as a stream and do not tell how
many pictures they have, so there a piece is a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from igpt.config import UserError
from igpt.data.decode import read_rgb
from igpt.data.pictures import Pictures, as_text
from igpt.data.shards import ROWS, Row, Stream, open_shards
from igpt.data.sources import is_shards, open_source


@dataclass(frozen=True)
class Item:
    """A picture that is decoded when it is looked at."""

    name: str
    open_rgb: Callable[[], Image.Image]  # raises UnreadablePicture when it cannot be decoded
    label: int | str | None  # None: it has none


@dataclass(frozen=True)
class Cut:
    """A split in pieces."""

    extent: int  # the number of pictures of a set, or of files of a stream
    pieces: int
    read: Callable[[int], Iterator[Item]]  # the pictures of a piece, in their order
    label: Any  # the labels' kind, a feature of `datasets`; None: there are no labels


def cut_source(
    spec: str, image_column: str | None, label_column: str | None, pictures: int
) -> dict[str, Cut]:
    """The splits of a source, each cut into pieces of at most `pictures` pictures.

    Shards, given by their path or URL, are one split "train" that is cut into files. Raises
    UserError for anything but these and what `open_source` opens, and for a source that has tokens
    and no pixels.
    """
    if is_shards(spec):
        return {"train": _cut_stream(open_shards(spec, image_column, label_column))}
    source = open_source(spec, image_column=image_column, label_column=label_column)
    # In the order of its stream, as what is made of the pieces may be read as one.
    cuts = {name: _cut_set(source.streamed(name), spec, pictures) for name in source.splits}
    kind = next((cut.label for cut in cuts.values() if cut.label is not None), None)
    # A split without labels has the column too: the library opens splits with the same columns.
    return {name: replace(cut, label=kind) for name, cut in cuts.items()}


def _cut_set(pictures: Pictures, spec: str, length: int) -> Cut:
    import datasets

    if pictures.encoded is not None:
        raise UserError(f"{spec} is encoded already: there are no pixels to resize")
    starts = range(0, len(pictures), length)
    labels, names, folder = pictures.labels, pictures.class_names, as_text(f"{Path(spec)}/")
    kind = datasets.Value("int64") if names is None else datasets.ClassLabel(names=list(names))

    def read(piece: int) -> Iterator[Item]:
        for i in range(starts[piece], min(starts[piece] + length, len(pictures))):
            name = pictures.name(i).removeprefix(folder)
            label = None if labels is None else _known(int(labels[i]))
            yield Item(name, partial(read_rgb, pictures, i), label)

    return Cut(len(pictures), len(starts), read, None if labels is None else kind)


def _cut_stream(stream: Stream) -> Cut:
    def read(piece: int) -> Iterator[Item]:
        reading = stream.file(piece).read()
        while rows := reading.rows(ROWS):
            yield from _items(rows, stream.files[piece])

    count = len(stream.files)
    return Cut(count, count, read, _label_kind(stream))


def _items(rows: Sequence[Row], file: str) -> Iterator[Item]:
    pictures = Pictures(len(rows), lambda i: rows[i].image(), lambda i: f"{file}: {rows[i].name}")
    for i, row in enumerate(rows):
        yield Item(row.name, partial(read_rgb, pictures, i), _known(row.label))


def _label_kind(stream: Stream) -> Any:
    """The labels' kind, as `Cut` has it.

    Names stay strings: which classes there are is known only when the last file was read.
    """
    import datasets

    if stream.label is None:
        return None
    kind = stream.dataset.features[stream.label]
    if isinstance(kind, datasets.ClassLabel):
        return kind
    return datasets.Value("string" if "string" in kind.dtype else "int64")


def _known(label: int | str | None) -> int | str | None:
    if isinstance(label, bool):
        return int(label)
    return None if label == -1 else label
