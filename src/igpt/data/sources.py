"""Where pictures come from: one way to open every kind of source, and how its splits are chosen.

A source has splits, a split is `Pictures`: a sequence that is decoded only when it is looked at, so
that an unreadable picture is met, and named, by whoever needs it.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from igpt.config import DataConfig, UserError
from igpt.rng import numpy_rng

# What a broken file makes Pillow's decoders raise; it has no one exception for that.
BROKEN = (
    *(OSError, ValueError, SyntaxError, LookupError, TypeError, EOFError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
# Names of pictures and labels in a .npz, and the split that they are.
ARRAYS = (
    ("x", "y", "train"),
    ("images", "labels", "train"),
    ("x_train", "y_train", "train"),
    ("x_test", "y_test", "test"),
)
DIGITS_TEST = 297  # of the 1,797 scans of scikit-learn's digits, chosen by a fixed shuffle
VALIDATION_NAMES = ("validation", "valid", "val", "dev")


Labels = tuple[npt.NDArray[np.int64] | None, tuple[str, ...] | None]  # [N], names of classes


class UnreadablePicture(Exception):
    """A picture that cannot be decoded; the message is its name and why."""


@dataclass(frozen=True)
class Pictures:
    """A split: N pictures, each opened by `open_image(i)`, with labels where there are any.

    A label of -1 is a missing one.
    """

    count: int
    open_image: Callable[[int], Image.Image]
    name_of: Callable[[int], str]
    labels: npt.NDArray[np.int64] | None = None  # [N]
    class_names: tuple[str, ...] | None = None
    # uint8 [N, H, W] or [N, H, W, 3], where all of them are in memory
    array: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return self.name_of(i)

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
            name_of=lambda i: self.name_of(chosen[i]),
            labels=None if self.labels is None else self.labels[indices],
            array=None if self.array is None else self.array[indices],
        )


@dataclass(frozen=True)
class Source:
    """Named splits, each opened when it is asked for."""

    name: str
    open_split: dict[str, Callable[[], Pictures]]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.open_split)

    def split(self, name: str) -> Pictures:
        """One split; UserError that lists them when there is none of that name, or it is empty."""
        if name not in self.open_split:
            raise UserError(f"{self.name} has no split '{name}', only: {', '.join(self.splits)}")
        pictures = self.open_split[name]()
        if len(pictures) == 0:
            raise UserError(f"{self.name}: split '{name}' has no pictures")
        return pictures


def open_source(
    spec: str, *, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Open `digits`, a `.npy`/`.npz`, a local folder or a Hugging Face data set id.

    Raises UserError when there is no such thing or it has no pictures.
    """
    path = Path(spec)
    if spec == "digits":
        return _digits()
    if path.suffix in (".npy", ".npz"):
        return _arrays(path)
    if path.is_file():
        raise UserError(f"{spec} is a file: expected a folder, .npy, .npz or a data set id")
    is_id = spec.count("/") == 1 and not spec.startswith((".", "/"))
    if not spec or not (path.exists() or is_id):
        raise UserError(f"no data at '{spec}': expected a folder, .npy, .npz, `digits` or a Hub id")
    return _hugging_face(spec, image_column, label_column)


def open_files(paths: Sequence[Path]) -> Pictures:
    """Picture files, and all those in folders, in the order of their names.

    Raises UserError for a path that does not exist and when there are no pictures.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += _files_in(path)
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"no picture {path}")
    if not files:
        raise UserError(f"no pictures in {', '.join(map(str, paths))}")

    def open_image(i: int) -> Image.Image:
        return Image.open(io.BytesIO(files[i].read_bytes()))  # leaves no file open

    return Pictures(len(files), open_image, lambda i: str(files[i]))


def _files_in(folder: Path) -> list[Path]:
    """All picture files below a folder, without hidden ones, sorted."""
    Image.init()
    readable = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in readable
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


# --- splits --------------------------------------------------------------------------------------


def training_splits(source: Source, config: DataConfig, seed: int) -> tuple[Pictures, Pictures]:
    """Training and validation pictures; the test split is not opened.

    The validation split is the one named, else the source's (unless that is for testing, as
    ImageNet's is), else a part of train drawn from `seed` (paper, section 3.1: 4 % or 10 %).
    """
    if config.test_split in (config.train_split, config.validation_split):
        raise UserError(f"split '{config.test_split}' is for testing: it cannot be trained on")
    train = source.split(config.train_split)
    usual = (n for n in VALIDATION_NAMES if n in source.splits and n != config.test_split)
    name = config.validation_split or next(usual, None)
    if name is not None and name != config.train_split:
        return train, source.split(name)
    held_out = max(1, round(len(train) * config.validation_fraction))
    if held_out >= len(train):
        raise UserError(f"{source.name}: {len(train)} pictures are too few to hold some out")
    shuffled = numpy_rng(seed, "validation").permutation(len(train))
    return train.select(np.sort(shuffled[held_out:])), train.select(np.sort(shuffled[:held_out]))


def evaluation_split(source: Source, name: str) -> Pictures:
    """The split to evaluate on; a source with a single split gives that one, and a warning."""
    if name not in source.splits and len(source.splits) == 1:
        (only,) = source.splits
        note = f"{source.name} has no split '{name}': '{only}', its only one, is taken instead"
        warnings.warn(f"{note}; a model trained on this source has seen it", stacklevel=2)
        name = only
    return source.split(name)


# --- kinds of source -----------------------------------------------------------------------------


def array_pictures(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64] | None, name: str
) -> Pictures:
    """Pictures of an array [N, H, W] or [N, H, W, 3]."""

    def open_image(i: int) -> Image.Image:
        return Image.fromarray(images[i])

    return Pictures(len(images), open_image, lambda i: f"{name}[{i}]", labels, array=images)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)  # 0 to 16, [1797, 8, 8]
    labels = bunch.target.astype(np.int64)
    names = tuple(str(n) for n in bunch.target_names)
    shuffled = numpy_rng(0, "digits").permutation(len(images))
    parts = {"train": np.sort(shuffled[DIGITS_TEST:]), "test": np.sort(shuffled[:DIGITS_TEST])}

    def open_split(split: str) -> Pictures:
        index = parts[split]
        pictures = array_pictures(images[index], labels[index], f"digits/{split}")
        return replace(pictures, class_names=names)

    return Source("digits", {split: partial(open_split, split) for split in parts})


def _arrays(path: Path) -> Source:
    arrays = _load_arrays(path)
    open_split = {
        split: _array_split(path, arrays[images], arrays.get(labels))
        for images, labels, split in ARRAYS
        if images in arrays
    }
    if not open_split:
        raise UserError(f"{path}: expected images, x, or x_train and x_test, not {set(arrays)}")
    return Source(str(path), open_split)


def _load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            return dict(loaded)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except Exception as error:  # whatever the reader of a broken zip file meets first
        raise UserError(f"{path} is not a whole {path.suffix} file of uint8 pictures") from error


def _array_split(
    path: Path, images: npt.NDArray[Any], labels: npt.NDArray[Any] | None
) -> Callable[[], Pictures]:
    colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour):
        got = f"{images.dtype} {list(images.shape)}"
        raise UserError(f"{path}: expected uint8 pictures [N, H, W] or [N, H, W, 3], got {got}")
    if labels is None:
        return partial(array_pictures, images, None, str(path))
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        got = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{path}: expected integer labels [{len(images)}], got {got}")
    return partial(array_pictures, images, labels.astype(np.int64).ravel(), str(path))


def _hugging_face(spec: str, image_column: str | None, label_column: str | None) -> Source:
    """A folder or a Hub id, by the `datasets` library."""
    files = _files_in(Path(spec)) if Path(spec).is_dir() else []
    try:
        splits = _load_splits(spec)
        if image_column is None and _leaves_out(splits, spec, len(files)):
            return _folder(Path(spec), files)
    except Exception as error:  # builders raise anything on what they can make nothing of
        if files:
            return _folder(Path(spec), files)
        cause = error.__cause__ or error  # the library's own words for a failed build say nothing
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        what = "no pictures in" if Path(spec).is_dir() else "no data set"
        raise UserError(f"{what} {spec}: {reason}") from error
    _image_column(next(iter(splits.values())).features, spec, image_column)
    opened = partial(_split_pictures, splits, spec, image_column, label_column)
    return Source(spec, {str(split): partial(opened, split) for split in splits})


def _load_splits(spec: str) -> Any:
    """A `datasets.DatasetDict`."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    saved = any(Path(spec, name).is_file() for name in ("dataset_dict.json", "state.json"))
    loaded = datasets.load_from_disk(spec) if saved else datasets.load_dataset(spec)
    return datasets.DatasetDict(train=loaded) if isinstance(loaded, datasets.Dataset) else loaded


def _leaves_out(splits: Any, spec: str, n_files: int) -> bool:
    """Whether picture files of a folder are in no split.

    A builder goes by the commonest kind of file, and takes a name like `test.png` or `test tubes`
    for a split, which leaves out all others. A metadata file may choose what it wants.
    """
    import datasets

    kinds = next(iter(splits.values())).features.values()
    if not any(isinstance(kind, datasets.Image) for kind in kinds):
        return n_files > 0
    return sum(map(len, splits.values())) < n_files and not any(Path(spec).rglob("metadata.*"))


def _folder(path: Path, files: Sequence[Path]) -> Source:
    """A folder that no builder does justice to: one split; its subfolders, if any, are classes."""
    pictures = open_files(files)
    parts = [file.relative_to(path).parts for file in files]
    if all(len(p) > 1 for p in parts):
        labels, names = _indexed([p[0] for p in parts], {p[0] for p in parts})
        pictures = replace(pictures, labels=labels, class_names=names)
    return Source(str(path), {"train": lambda: pictures})


def _image_column(features: Any, spec: str, name: str | None) -> str:
    import datasets

    found = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if name is not None:
        if name not in features:
            raise UserError(f"{spec} has no column '{name}', only: {', '.join(features)}")
        return name
    if len(found) != 1:
        listed = ", ".join(found) or f"none among {', '.join(features)}"
        raise UserError(f"{spec}: expected one column of pictures, found {listed}: --image-column")
    return found[0]


def _split_pictures(
    splits: Any, spec: str, image_column: str | None, label_column: str | None, split: str
) -> Pictures:
    """A split of a `datasets` data set, its pictures left encoded until they are looked at."""
    import datasets

    dataset, name = splits[split], f"{spec}/{split}"
    column = _image_column(dataset.features, name, image_column)
    try:
        encoded = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # as pyarrow's are
        raise UserError(f"{name}: column '{column}' does not hold pictures") from error
    # The Arrow column is mapped from disk, and several times faster by row than the data set.
    rows = encoded.with_format("arrow")[:][column]

    def name_of(i: int) -> str:
        return (rows[i].as_py() or {}).get("path") or f"{name}[{i}]"

    def open_image(i: int) -> Image.Image:
        item = rows[i].as_py()
        if item is None:
            raise ValueError("no picture in this row")
        data = item["bytes"]
        return Image.open(io.BytesIO(Path(item["path"]).read_bytes() if data is None else data))

    labels, class_names = _labels(splits, split, name, label_column)
    return Pictures(len(dataset), open_image, name_of, labels, class_names)


def _labels(splits: Any, split: str, name: str, label_column: str | None) -> Labels:
    """The column named, else the first of class labels, else one that has a usual name."""
    import datasets

    features = splits[split].features
    if label_column is not None and label_column not in features:
        raise UserError(f"{name} has no column '{label_column}', only: {', '.join(features)}")
    found = [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [c for c in ("label", "labels", "class") if c in features]
    column = label_column or next(iter(found + usual), None)
    if column is None:
        return None, None
    kind, values = features[column], splits[split][column][:]
    dtype = getattr(kind, "dtype", "list")
    if "string" in dtype:
        # Of all splits, so that an index means the same class in each.
        classes = {value for part in splits.values() for value in part.unique(column)}
        return _indexed(values, classes - {None})
    if "int" not in dtype and dtype != "bool":
        raise UserError(f"{name}: labels in '{column}' must be whole numbers or names, not {dtype}")
    numbers = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    return numbers, tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None


def _indexed(values: Iterable[str | None], classes: set[str]) -> Labels:
    names = sorted(classes)
    index = {name: i for i, name in enumerate(names)}
    return np.array([-1 if v is None else index[v] for v in values], dtype=np.int64), tuple(names)
