"""Folders and Hub data sets, opened by the `datasets` library."""

from __future__ import annotations

import io
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from igpt.config import UserError, first_line
from igpt.data.folders import (
    OTHER_METADATA,
    is_saved,
    open_picture_folder,
    picture_folder,
    split_names,
)
from igpt.data.metadata import USUAL_LABELS
from igpt.data.pictures import (
    Classes,
    Pictures,
    Source,
    as_text,
    index_classes,
    is_picture,
    visible_files,
)


def open_dataset(spec: str, image_column: str | None, label_column: str | None) -> Source:
    """A folder or a Hub id; a folder of picture files as `data.folders` reads it."""
    folder = Path(spec)
    if folder.is_dir() and (found := picture_folder(folder, label_column)):
        # The names that the library gives the columns of such a folder.
        others = label_column not in (None, "label") and found.metadata is None
        if image_column not in (None, "image") or others:
            raise UserError(
                f"{spec} is a folder of pictures, with no columns to choose from: a "
                "metadata.csv in it would give some"
            )
        return open_picture_folder(found)
    require_plain_path(spec)
    try:
        splits = _load_splits(spec)
    except UserError:
        raise
    except Exception as error:  # builders raise anything on data that they cannot read
        what = f"no folder {spec} here, and no data set"
        if folder.is_dir():
            what = "cannot open" if visible_files(folder) else "no pictures in"
        raise UserError(f"{what} {spec}: {reason(error)}") from error
    image_column_of(next(iter(splits.values())).features, spec, image_column)
    if folder.is_dir() and not is_saved(folder):
        _warn_of_unlisted(folder, sum(map(len, splits.values())))
    splits = {name: _whole_labels(part, label_column) for name, part in splits.items()}
    opened = partial(_split_pictures, splits, spec, image_column, label_column)
    return Source(spec, {str(split): partial(opened, split) for split in splits})


def _warn_of_unlisted(folder: Path, rows: int) -> None:
    """Where there are metadata, the library leaves out what they do not list, without a word."""
    files = visible_files(folder)
    metadata = next((path for path in files if path.name in OTHER_METADATA), None)
    unlisted = sum(map(is_picture, files)) - rows
    if metadata and unlisted > 0:
        warnings.warn(
            f"{metadata} lists {rows:,} pictures, and {unlisted:,} others in {folder} are left out",
            stacklevel=3,
        )


def reason(error: Exception) -> str:
    """What went wrong in the library, in one line."""
    cause = error.__cause__ or error  # the library's own message of a failed build says nothing
    if isinstance(cause, UnicodeEncodeError):
        return f"the name {as_text(cause.object)} is no UTF-8"
    return first_line(cause)


def require_plain_path(spec: str) -> None:
    """UserError for a folder whose path the library would take for a pattern that fits others."""
    folder = Path(spec).resolve()
    if folder.is_dir() and (found := re.search(r"[*?\[\]]|::", str(folder))):
        raise UserError(f"the path {folder} has '{found[0]}' in it: rename that folder")


def split_patterns(spec: str) -> dict[str, str] | None:
    """Patterns of each split's files in a folder whose splits are called in capitals, else None.

    The library knows such names in lower case only.
    """
    folder = Path(spec)
    if not folder.is_dir():
        return None
    names = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    found = split_names(names, folder)
    usual = all(name == name.lower() for name in found.values())
    return None if usual else {split: f"{name}/**" for split, name in found.items()}


def _load_splits(spec: str) -> Any:
    """A `datasets.DatasetDict`."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if is_saved(Path(spec)):
        loaded = datasets.load_from_disk(spec)
    else:
        loaded = datasets.load_dataset(spec, data_files=split_patterns(spec))
    return datasets.DatasetDict(train=loaded) if isinstance(loaded, datasets.Dataset) else loaded


def image_column_of(features: Any, spec: str, name: str | None) -> str:
    """The column `name`, or the only one of pictures; UserError when there is none, or several."""
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
    import pyarrow
    import pyarrow.compute

    dataset, name = splits[split], f"{spec}/{split}"
    column = image_column_of(dataset.features, name, image_column)
    try:
        encoded = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    # Only the cast can tell whether a column holds pictures: `datasets` refuses others with a
    # TypeError or ValueError, and pyarrow with an error of its own.
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{name}: column '{column}' does not hold pictures") from error
    # The Arrow column is mapped from disk, and reads rows several times faster than the data set.
    rows = encoded.with_format("arrow")[:][column]
    paths = pyarrow.compute.struct_field(rows, "path")  # a name does not read its picture

    def name_of(i: int) -> str:
        return as_text(paths[i].as_py() or f"{name}[{i}]")

    def open_image(i: int) -> Image.Image:
        item = rows[i].as_py()
        if item is None:
            raise ValueError("no picture in this row")
        data = item["bytes"]
        return Image.open(io.BytesIO(read_named(item["path"]) if data is None else data))

    labels, class_names = _labels(splits, split, name, label_column)
    return Pictures(len(dataset), open_image, name_of, labels, class_names)


def read_named(path: str) -> bytes:
    """The bytes of a file that the library names: by a path or at a URL."""
    if "://" not in path:
        return Path(path).read_bytes()
    import fsspec

    with fsspec.open(path, "rb") as file:
        return bytes(file.read())


def label_column_of(features: Any, spec: str, name: str | None) -> str | None:
    """The column `name`, else the first of class labels, else one that has a usual name.

    Raises UserError when there is no column `name`, or its values are not classes. A column that
    only has a usual name, but no classes, is passed over: pictures may have labels of other kinds.
    """
    import datasets

    if name is None:
        found = [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        usual = [c for c in USUAL_LABELS if c in features and _is_class(features[c])]
        return next(iter(found + usual), None)
    if name not in features:
        raise UserError(f"{spec} has no column '{name}', only: {', '.join(features)}")
    if not _is_class(features[name]):
        got = getattr(features[name], "dtype", "list")
        raise UserError(f"{spec}: labels in '{name}' must be whole numbers or names, not {got}")
    return name


def _whole_labels(dataset: Any, label_column: str | None) -> Any:
    """The data set with whole numbers where labels are floats only because some are missing."""
    import datasets

    for column in [label_column] if label_column else USUAL_LABELS:
        kind = dataset.features.get(column)
        if isinstance(kind, datasets.Value) and "float" in kind.dtype:
            values = np.array(dataset[column][:], dtype=np.float64)  # None becomes NaN
            known = ~np.isnan(values)
            numbers = values[known]
            if len(numbers) and (np.isfinite(numbers) & (numbers == numbers.round())).all():
                labels = [int(value) if value == value else None for value in values]
                whole = dataset.remove_columns(column)
                dataset = whole.add_column(column, labels, feature=datasets.Value("int64"))
    return dataset


def _is_class(kind: Any) -> bool:
    """Whether each row of a column of this kind holds one class: a whole number or a name."""
    import datasets

    one = isinstance(kind, datasets.ClassLabel | datasets.Value)  # a single value, not an array
    return one and ("string" in kind.dtype or "int" in kind.dtype or kind.dtype == "bool")


def _labels(splits: Any, split: str, name: str, label_column: str | None) -> Classes:
    import datasets

    features = splits[split].features
    column = label_column_of(features, name, label_column)
    if column is None:
        return None, None
    having = [part for part in splits.values() if column in part.features]
    if len({"string" in part.features[column].dtype for part in having}) > 1:
        raise UserError(f"{name}: '{column}' holds names in one split and numbers in another")
    kind, values = features[column], splits[split][column][:]
    if "string" in kind.dtype:
        # The classes of all splits, so that an index means the same class in each.
        classes = {value for part in having for value in part.unique(column)}
        return index_classes(values, classes - {None, ""})
    try:
        numbers = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    except OverflowError as error:
        raise UserError(f"{name}: labels in '{column}' are too large for classes") from error
    if not isinstance(kind, datasets.ClassLabel):
        return numbers, None
    # Each split may count its classes in an order of its own: the first one's holds for all.
    kinds = [part.features.get(column) for part in splits.values()]
    of_splits = [kind.names for kind in kinds if isinstance(kind, datasets.ClassLabel)]
    names = tuple(dict.fromkeys(name for of_split in of_splits for name in of_split))
    place = {name: i for i, name in enumerate(names)}
    places = np.array([*(place[name] for name in kind.names), -1], dtype=np.int64)
    return places[numbers], names
