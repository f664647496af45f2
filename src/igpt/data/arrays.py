"""Arrays in `.npy` and `.npz`: pictures, or pictures that are tokens of a palette already.

OpenAI published its data sets encoded (image-gpt, src/run.py, load_data): `imagenet_trX.npy` holds
the tokens [N, T] of the training pictures and `imagenet_trY.npy` their classes, one-hot; `va` and
`te` are validation and test.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from igpt.config import UserError
from igpt.data.pictures import Pictures, Source, array_pictures, encoded_pictures
from igpt.order import Encoded
from igpt.types import Labels

# Names of pictures and labels in a .npz, and the split that they are; the last are MedMNIST's.
ARRAYS = (
    ("x", "y", "train"),
    ("images", "labels", "train"),
    ("x_train", "y_train", "train"),
    ("x_val", "y_val", "validation"),
    ("x_test", "y_test", "test"),
    ("train_images", "train_labels", "train"),
    ("val_images", "val_labels", "validation"),
    ("test_images", "test_labels", "test"),
)
OPENAI_SPLITS = {"tr": "train", "va": "validation", "te": "test"}
OPENAI_TOKENS = re.compile(r"(.*)_(tr|va|te)X\.npy")


def open_arrays(path: Path) -> Source:
    """Pictures or tokens of one file; UserError for anything else."""
    arrays = _load(path)
    open_split = {
        split: _split(path, arrays[images], arrays.get(labels))
        for split, (images, labels) in _names(path, arrays).items()
    }
    return Source(str(path), open_split)


def _names(path: Path, arrays: Collection[str]) -> dict[str, tuple[str, str]]:
    """The names of each split's pictures and labels; a warning tells of arrays that are neither.

    Raises UserError where there are no pictures, and for a split's pictures under two names.
    """
    found: dict[str, tuple[str, str]] = {}
    for images, labels, split in ARRAYS:
        if images in arrays:
            if split in found:
                both = f"{found[split][0]} and {images}"
                raise UserError(f"{path}: {both} are both pictures of split '{split}'")
            found[split] = images, labels
    if not found:
        raise UserError(f"{path}: expected images, x, or x_train and x_test, not {set(arrays)}")
    if aside := ", ".join(sorted(set(arrays).difference(*found.values()))):
        warnings.warn(
            f"{path}: left aside {aside}: neither pictures nor their labels are called so",
            stacklevel=2,
        )
    return found


def openai_arrays(path: Path) -> dict[str, Path]:
    """Files of tokens by split, if `path` is one of them, their folder, or their path up to `_`.

    Empty for any other path. Raises UserError for a folder with several data sets.
    """
    match = OPENAI_TOKENS.fullmatch(path.name)
    if match and path.is_file():
        return {OPENAI_SPLITS[match[2]]: path}
    if not path.is_dir():
        files = {split: Path(f"{path}_{part}X.npy") for part, split in OPENAI_SPLITS.items()}
        return {split: file for split, file in files.items() if file.is_file()}
    matches = [m for file in path.iterdir() if (m := OPENAI_TOKENS.fullmatch(file.name))]
    names = sorted({match[1] for match in matches})
    if len(names) > 1:
        raise UserError(f"{path} has several data sets, name one: {path / names[0]}")
    return {OPENAI_SPLITS[match[2]]: path / match[0] for match in matches}


def open_openai(name: str, files: Mapping[str, Path]) -> Source:
    """Splits of OpenAI's files of tokens, with the labels that lie beside them."""
    return Source(name, {split: partial(_open_openai, path) for split, path in files.items()})


def _open_openai(path: Path) -> Pictures:
    beside = path.with_name(path.name.removesuffix("X.npy") + "Y.npy")
    labels = _load_one(beside) if beside.is_file() else None
    tokens = _load_one(path)
    return encoded_pictures(
        _encoded(path, tokens),
        None if labels is None else _labels(beside, labels, len(tokens)),
        str(path),
    )


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            return dict(loaded)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (MemoryError, PermissionError):  # nothing is wrong with the file
        raise
    except Exception as error:  # a broken zip file can make the reader raise anything
        raise UserError(
            f"{path} is not a whole {path.suffix} file of pictures or tokens"
        ) from error


def _load_one(path: Path) -> npt.NDArray[Any]:
    arrays = _load(path)
    if "x" not in arrays:
        raise UserError(f"{path} is not an array but an archive of {set(arrays)}")
    return arrays["x"]


def _split(
    path: Path, images: npt.NDArray[Any], labels: npt.NDArray[Any] | None
) -> Callable[[], Pictures]:
    tokens = images.ndim == 2 and images.dtype.kind in "iu"
    colour = images.ndim == 4 and images.shape[-1] == 3
    pixels = images.dtype == np.uint8 and (images.ndim == 3 or colour) and 0 not in images.shape[1:]
    if not (tokens or pixels):
        raise UserError(
            f"{path}: expected uint8 pictures [N, H, W] or [N, H, W, 3], or whole numbers [N, T] "
            f"that are tokens, got {images.dtype} {list(images.shape)}"
        )
    known = None if labels is None else _labels(path, labels, len(images))
    if tokens:
        return partial(encoded_pictures, _encoded(path, images), known, str(path))
    return partial(array_pictures, images, known, str(path))


def _encoded(path: Path, tokens: npt.NDArray[Any]) -> Encoded:
    try:
        return Encoded(tokens)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _labels(path: Path, labels: npt.NDArray[Any], count: int) -> Labels | None:
    """int64 [N] of whole numbers [N] or [N, 1], or of rows [N, C] with a 1 at the class.

    None, with a warning, where rows have any number of ones, since a model can learn from pictures
    without labels. Raises UserError for anything else.
    """
    if labels.dtype.kind in "iu" and labels.shape in ((count,), (count, 1)):
        return labels.astype(np.int64).ravel()
    ones = labels == 1
    if labels.ndim != 2 or len(labels) != count or not np.array_equal(labels, ones):
        got = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{path}: expected integer labels [{count}], got {got}")
    if (ones.sum(axis=1) == 1).all():
        return ones.argmax(axis=1)
    warnings.warn(
        f"{path}: left aside the labels, which name no or several classes for some pictures",
        stacklevel=2,
    )
    return None
