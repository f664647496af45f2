"""A set of pictures: a sequence that is decoded only when it is looked at.

So an unreadable picture is found, and named, only when it is needed.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from igpt.config import UserError
from igpt.order import Encoded
from igpt.types import Labels

Classes = tuple[Labels | None, tuple[str, ...] | None]  # the pictures' labels, the classes' names
MINUS_ONE = "of the labels -1 and 1 the first means a missing one: call it 0"

# What Pillow's decoders raise for a broken file; they have no common exception.
BROKEN = (
    *(OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, EOFError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)


# Suffixes of pictures that Pillow does not read: of phones and cameras; of microscopes and clinics.
PHOTOS = {".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf"}
SCANS = {".czi", ".nd2", ".lif", ".oib", ".vsi", ".svs", ".ndpi", ".dcm"}
STRANGE = PHOTOS | SCANS

# Formats that Pillow knows by name but opens only with a program or plugin of one's own.
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


class UnreadablePicture(Exception):
    """A picture that cannot be decoded; the message is its name and why."""


@dataclass(frozen=True)
class Pictures:
    """A split: N pictures, each opened by `open_image(i)`, with labels where there are any.

    A label of -1 is a missing one.
    """

    count: int
    open_image: Callable[[int], Image.Image]
    name: Callable[[int], str]  # as text that can be written (`as_text`)
    labels: Labels | None = None  # [N]
    class_names: tuple[str, ...] | None = None
    # uint8 [N, H, W] or [N, H, W, 3], where all of them are in memory
    array: npt.NDArray[np.uint8] | None = None
    encoded: Encoded | None = None  # where they are tokens already; then none can be opened

    def __len__(self) -> int:
        return self.count

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are in memory already, so that all their tokens may be, too."""
        return self.array is not None or self.encoded is not None

    def require_croppable(self) -> None:
        """UserError where they are tokens already: crops are of pictures."""
        if self.encoded is not None:
            raise UserError(
                "augmentation imagenet crops pictures, and the data are tokens already: "
                "choose none, flip or cifar"
            )

    def image(self, i: int) -> Image.Image:
        """Picture i, decoded; UnreadablePicture when it cannot be."""
        try:
            image = self.open_image(i)
            image.load()
        except UnidentifiedImageError as error:
            raise UnreadablePicture(f"{self.name(i)}: not a picture") from error
        except BROKEN as error:
            raise UnreadablePicture(f"{self.name(i)}: {error}") from error
        return image

    def select(self, indices: npt.NDArray[np.int64]) -> Pictures:
        """The pictures at `indices` [M], in that order."""
        chosen = [int(i) for i in indices]
        return replace(
            self,
            count=len(chosen),
            open_image=lambda i: self.open_image(chosen[i]),
            name=lambda i: self.name(chosen[i]),
            labels=None if self.labels is None else self.labels[indices],
            array=None if self.array is None else self.array[indices],
            encoded=None if self.encoded is None else self.encoded[indices],
        )


@dataclass(frozen=True)
class Source:
    """Named splits, each opened when it is asked for."""

    name: str
    open_split: dict[str, Callable[[], Pictures]]
    # Of a split: the places [N] of its pictures as they are streamed; None: in their own order
    stream_order: Callable[[str], npt.NDArray[np.int64]] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.open_split)

    def split(self, name: str) -> Pictures:
        """One split; UserError when it is empty, or there is none of that name (lists them)."""
        if name not in self.open_split:
            known = ", ".join(self.splits)
            raise UserError(f"{self.name} has no split '{name}', only: {known}")
        pictures = self.open_split[name]()
        if len(pictures) == 0:
            raise UserError(f"{self.name}: split '{name}' has no pictures")
        return pictures

    def streamed(self, name: str) -> Pictures:
        """A split in the order in which it is streamed."""
        pictures = self.split(name)
        return pictures if self.stream_order is None else pictures.select(self.stream_order(name))


def array_pictures(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64] | None, name: str
) -> Pictures:
    """Pictures of an array [N, H, W] or [N, H, W, 3]."""

    def open_image(i: int) -> Image.Image:
        return Image.fromarray(images[i])

    text = as_text(name)
    return Pictures(len(images), open_image, lambda i: f"{text}[{i}]", labels, array=images)


def encoded_pictures(encoded: Encoded, labels: npt.NDArray[np.int64] | None, name: str) -> Pictures:
    """Pictures that are tokens; opening one to see its pixels raises UserError."""

    text = as_text(name)

    def open_image(i: int) -> Image.Image:
        raise UserError(f"{text}[{i}] has no pixels, it is tokens of a palette")

    return Pictures(len(encoded), open_image, lambda i: f"{text}[{i}]", labels, encoded=encoded)


def open_files(paths: Sequence[Path]) -> Pictures:
    """Picture files, and all those in folders, in the order of their names.

    Raises UserError for a path that does not exist and when there are no pictures.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += only_pictures(visible_files(path))
        elif path.suffix in (".npy", ".npz"):
            raise UserError(f"{path} is an array: give it by --data, or in Python as an array")
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"no picture {path}")
    if not files:
        raise UserError(f"no pictures in {', '.join(map(str, paths))}")
    return file_pictures(files)


def file_pictures(files: Sequence[Path]) -> Pictures:
    """Picture files that are known to be there."""

    def open_image(i: int) -> Image.Image:
        return Image.open(io.BytesIO(files[i].read_bytes()))  # leaves no file open

    return Pictures(len(files), open_image, lambda i: as_text(str(files[i])))


def as_text(name: str) -> str:
    """`name` as text that can be written: bytes of a file's name that are not UTF-8 as \\udcff."""
    return name.encode(errors="backslashreplace").decode()


def class_order(names: Collection[str]) -> list[str]:
    """Names of classes in the order of their labels: by number where all of them are numbers."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def index_classes(values: Iterable[str | None], classes: Collection[str]) -> Classes:
    """Labels [N] of the values that are among the names of `classes`, -1 of others."""
    names = class_order(classes)
    index = {name: i for i, name in enumerate(names)}
    labels = [-1 if value is None else index.get(value, -1) for value in values]
    return np.array(labels, dtype=np.int64), tuple(names)


def only_pictures(files: Sequence[Path]) -> list[Path]:
    """Those that Pillow reads, by their names; a warning counts pictures that it does not read."""
    if strange := [path for path in files if path.suffix.lower() in STRANGE]:
        warnings.warn(
            f"{len(strange):,} pictures are passed over, as Pillow does not read "
            f"{', '.join(sorted({path.suffix for path in strange}))}: convert them first",
            stacklevel=3,
        )
    return [path for path in files if is_picture(path)]


def is_picture(path: PurePath) -> bool:
    """Whether a file's name is that of a picture that Pillow reads."""
    Image.init()
    return Image.EXTENSION.get(path.suffix.lower()) in Image.OPEN.keys() - STUBS


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder, in linked folders too, without hidden ones, sorted as text.

    Raises UserError for a folder that cannot be read.
    """
    return [Path(path) for path in sorted(_walk(str(folder), ()))]


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:  # a link leads back
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()  # neither is a broken link
        except OSError:  # nor a link to itself
            continue
        if is_folder:
            yield from _walk(entry.path, (*above, real))
        elif is_file:
            yield entry.path
