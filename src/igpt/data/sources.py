"""Where pictures come from: one way to open every kind of source, and how its splits are chosen.

A source has splits, a split is `Pictures`: a sequence that is decoded only when it is looked at, so
that an unreadable picture is met, and named, by whoever needs it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from igpt.config import DataConfig, UserError
from igpt.rng import numpy_rng

SUFFIXES = tuple(sorted(Image.registered_extensions()))
DIGITS_TEST = 297  # of the 1,797 scans of scikit-learn's digits, chosen by a fixed shuffle
VALIDATION_NAMES = ("validation", "valid", "val", "dev")


class UnreadablePicture(Exception):
    """A picture that cannot be decoded; the message is its name and why."""


@dataclass(frozen=True)
class Pictures:
    """A split: N pictures, each opened by `open_image(i)`, with labels where there are any."""

    count: int
    open_image: Callable[[int], Image.Image]
    name_of: Callable[[int], str]
    labels: npt.NDArray[np.int64] | None = None  # [N]
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return self.name_of(i)

    def image(self, i: int) -> Image.Image:
        """Picture i, decoded; UnreadablePicture when it cannot be."""
        try:
            image = self.open_image(i)
            image.load()
        # Pillow has no one exception for what a broken file can do to its decoders.
        except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError) as error:
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
            raise UserError(
                f"{self.name} has no split '{name}', expected one of: {', '.join(self.splits)}"
            )
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
    if not path.exists() and (path.is_absolute() or spec.startswith(".") or spec.count("/") != 1):
        raise UserError(f"no data at {spec}: expected a folder, .npy, .npz, `digits` or a Hub id")
    return _hugging_face(spec, image_column, label_column)


def open_files(paths: Sequence[Path]) -> Pictures:
    """Picture files, and all those in folders, in the order of their names.

    Raises UserError for a path that does not exist and when there are no pictures.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"no picture {path}")
    if not files:
        raise UserError(f"no pictures in {', '.join(map(str, paths))}")
    return Pictures(len(files), lambda i: Image.open(files[i]), lambda i: str(files[i]))


# --- splits --------------------------------------------------------------------------------------


def training_splits(source: Source, config: DataConfig, seed: int) -> tuple[Pictures, Pictures]:
    """Training and validation pictures; the test split is not opened.

    The validation split is the one named, else the source's, else a part of train drawn from
    `seed` (paper, section 3.1, splits off 4 % or 10 %).
    """
    if config.test_split in (config.train_split, config.validation_split):
        raise UserError(f"split '{config.test_split}' is for testing: it cannot be trained on")
    train = source.split(config.train_split)
    name = config.validation_split or next((n for n in VALIDATION_NAMES if n in source.splits), None)
    if name is not None and name != config.train_split:
        return train, source.split(name)
    held_out = round(len(train) * config.validation_fraction)
    if not 1 <= held_out < len(train):
        raise UserError(f"{source.name}: {len(train)} pictures are too few to hold some out")
    shuffled = numpy_rng(seed, "validation").permutation(len(train))
    return train.select(np.sort(shuffled[held_out:])), train.select(np.sort(shuffled[:held_out]))


def evaluation_split(source: Source, name: str) -> Pictures:
    """The split to evaluate on; a source with a single split has only that one to give."""
    if name not in source.splits and len(source.splits) == 1:
        name = source.splits[0]
    return source.split(name)


# --- kinds of source -----------------------------------------------------------------------------


def array_pictures(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64] | None, name: str
) -> Pictures:
    """Pictures of an array [N, H, W] or [N, H, W, 3]."""
    return Pictures(
        len(images), lambda i: Image.fromarray(images[i]), lambda i: f"{name}[{i}]", labels
    )


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)  # 0 to 16, [1797, 8, 8]
    labels = bunch.target.astype(np.int64)
    shuffled = numpy_rng(0, "digits").permutation(len(images))
    parts = {"train": np.sort(shuffled[DIGITS_TEST:]), "test": np.sort(shuffled[:DIGITS_TEST])}

    def open_split(split: str) -> Callable[[], Pictures]:
        index = parts[split]
        names = tuple(str(n) for n in bunch.target_names)
        pictures = array_pictures(images[index], labels[index], f"digits/{split}")
        return lambda: replace(pictures, class_names=names)

    return Source("digits", {split: open_split(split) for split in parts})


def _arrays(path: Path) -> Source:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = dict(loaded) if path.suffix == ".npz" else {"x": loaded}
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    # A broken zip file of arrays raises whatever its reader meets first.
    except Exception as error:
        raise UserError(f"{path} is not a whole {path.suffix} file of uint8 pictures") from error
    open_split = {}
    for name, split in (("x", "train"), ("images", "train"), ("x_train", "train"), ("x_test", "test")):
        if name in arrays:
            labels = arrays.get({"x": "y", "images": "labels"}.get(name, name.replace("x_", "y_")))
            open_split[split] = _array_split(path, arrays[name], labels)
    if not open_split:
        raise UserError(
            f"{path} has arrays {', '.join(arrays)}: expected images, x, or x_train and x_test"
        )
    return Source(str(path), open_split)


def _array_split(
    path: Path, images: npt.NDArray[Any], labels: npt.NDArray[Any] | None
) -> Callable[[], Pictures]:
    colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour):
        raise UserError(
            f"{path}: expected uint8 pictures [N, H, W] or [N, H, W, 3], "
            f"got {images.dtype} {list(images.shape)}"
        )
    if labels is not None and labels.shape != (len(images),):
        raise UserError(f"{path}: {len(images)} pictures, but labels {list(labels.shape)}")
    whole = None if labels is None else labels.astype(np.int64)
    return lambda: array_pictures(images, whole, str(path))


def _hugging_face(spec: str, image_column: str | None, label_column: str | None) -> Source:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        if Path(spec, "dataset_dict.json").is_file() or Path(spec, "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(spec)
        else:
            loaded = datasets.load_dataset(spec)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise UserError(f"no data set {spec}, or no network to fetch it from the Hub") from error
    except Exception as error:
        # Builders raise anything on a folder they can make nothing of.
        if Path(spec).is_dir():
            return _folder(Path(spec))
        raise UserError(f"cannot load data set {spec}: {str(error).splitlines()[0]}") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict(train=loaded)

    def open_split(split: str) -> Callable[[], Pictures]:
        return lambda: _column(loaded[split], f"{spec}/{split}", image_column, label_column)

    first = next(iter(loaded.values()))
    _image_column(first.features, spec, image_column)
    return Source(spec, {str(split): open_split(split) for split in loaded})


def _folder(path: Path) -> Source:
    """A folder that no builder understands: the pictures in it, without labels."""
    pictures = open_files([path])
    return Source(str(path), {"train": lambda: pictures})


def _image_column(features: Any, spec: str, name: str | None) -> str:
    import datasets

    found = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if name is not None:
        if name not in features:
            raise UserError(f"{spec} has no column '{name}', only: {', '.join(features)}")
        return name
    if len(found) != 1:
        listed = ", ".join(found) if found else f"none among {', '.join(features)}"
        raise UserError(f"{spec}: expected one column of pictures, found {listed}: --image-column")
    return found[0]


def _column(dataset: Any, name: str, image_column: str | None, label_column: str | None) -> Pictures:
    """A split of a `datasets` data set, its pictures left encoded until they are looked at."""
    import datasets

    column = _image_column(dataset.features, name, image_column)
    encoded = dataset.cast_column(column, datasets.Image(decode=False)).select_columns([column])

    def name_of(i: int) -> str:
        return encoded[i][column]["path"] or f"{name}[{i}]"

    def open_image(i: int) -> Image.Image:
        item = encoded[i][column]
        data = item["bytes"]
        return Image.open(io.BytesIO(data) if data is not None else item["path"])

    labels, class_names = _labels(dataset, name, label_column)
    return Pictures(len(dataset), open_image, name_of, labels, class_names)


def _labels(
    dataset: Any, name: str, label_column: str | None
) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...] | None]:
    import datasets

    features = dataset.features
    if label_column is not None and label_column not in features:
        raise UserError(f"{name} has no column '{label_column}', only: {', '.join(features)}")
    found = [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [c for c in ("label", "labels", "class") if c in features]
    column = label_column or next(iter(found + usual), None)
    if column is None:
        return None, None
    values = dataset[column][:]
    kind = features[column]
    if isinstance(kind, datasets.ClassLabel):
        return np.array(values, dtype=np.int64), tuple(kind.names)
    names, index = np.unique(np.array([str(v) for v in values]), return_inverse=True)
    return index.astype(np.int64), tuple(str(n) for n in names)
