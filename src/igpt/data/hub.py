"""Folders and Hub data sets, opened by the `datasets` library."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from igpt.config import UserError, first_line
from igpt.data.pictures import Pictures, Source, as_text, files_in, open_files
from igpt.types import Labels

Classes = tuple[Labels | None, tuple[str, ...] | None]  # the pictures' labels, the classes' names

USUAL_LABELS = ("label", "labels", "class", "cls")  # the last is WebDataset's


def open_dataset(spec: str, image_column: str | None, label_column: str | None) -> Source:
    """A folder or a Hub id, by the `datasets` library."""
    require_plain_path(spec)
    files = files_in(Path(spec)) if Path(spec).is_dir() else []
    try:
        splits = _load_splits(spec)
        if image_column is None and _leaves_out(splits, spec, files):
            return _folder(Path(spec), files)
    except Exception as error:  # builders raise anything on data that they cannot read
        if files and _are_splits(Path(spec), files):  # do not take splits for classes
            raise UserError(f"cannot open the splits of {spec}: {reason(error)}") from error
        if files:
            return _folder(Path(spec), files)
        what = "no pictures in" if Path(spec).is_dir() else "no data set"
        raise UserError(f"{what} {spec}: {reason(error)}") from error
    image_column_of(next(iter(splits.values())).features, spec, image_column)
    opened = partial(_split_pictures, splits, spec, image_column, label_column)
    return Source(spec, {str(split): partial(opened, split) for split in splits})


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


def split_folders(spec: str) -> dict[str, str] | None:
    """Patterns of each split's files, for a folder of folders like `Train` and `Test`, else None.

    The library knows such names in lower case only, and takes others for classes of one split.
    """
    folder = Path(spec)
    if not folder.is_dir():
        return None
    names = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    found = _splits_among(names)
    usual = all(name == name.lower() for name in found.values())
    return None if usual else {split: f"{name}/**" for split, name in found.items()}


def _load_splits(spec: str) -> Any:
    """A `datasets.DatasetDict`."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if folders := split_folders(spec):
        return datasets.load_dataset(spec, data_files=folders)
    saved = any(Path(spec, name).is_file() for name in ("dataset_dict.json", "state.json"))
    loaded = datasets.load_from_disk(spec) if saved else datasets.load_dataset(spec)
    return datasets.DatasetDict(train=loaded) if isinstance(loaded, datasets.Dataset) else loaded


def _leaves_out(splits: Any, spec: str, files: Sequence[Path]) -> bool:
    """Whether some picture files of a folder are in no split, by mistake.

    A builder goes by the commonest kind of file, and takes a name like `test.png` or `test tubes`
    for a split, which leaves out all other files. A metadata file may leave out pictures on
    purpose, and so do pictures beside folders like `train` and `test`: a warning tells of these.
    """
    import datasets

    kinds = next(iter(splits.values())).features.values()
    if not any(isinstance(kind, datasets.Image) for kind in kinds):
        return bool(files)
    left_out = len(files) - sum(map(len, splits.values()))
    if left_out <= 0 or any(Path(spec).rglob("metadata.*")):
        return False
    top = {file.relative_to(spec).parts[0] for file in files}
    if len(found := _splits_among(top)) < 2:
        return True
    names = ", ".join(sorted(found.values()))
    warnings.warn(f"{left_out:,} pictures of {spec} are in none of {names}", stacklevel=2)
    return False


def _are_splits(path: Path, files: Sequence[Path]) -> bool:
    """Whether all files of a folder are in folders that the library takes for splits."""
    return {file.relative_to(path).parts[0].lower() for file in files} <= _split_words().keys()


def _splits_among(names: Collection[str]) -> dict[str, str]:
    """Which of a folder's folders are splits, by split: all of them, or two or more beside others.

    None for a single one beside others, which may all be classes, and where two are one split.
    """
    known = [(split, name) for word, split in _split_words().items()
             for name in names if name.lower() == word]  # in the library's order  # fmt: skip
    found = dict(known)
    alone = len(found) == 1 and len(names) > 1
    return {} if alone or len(found) < len(known) else found


def _split_words() -> dict[str, str]:
    """The names of folders that the library takes for splits, and which split each means."""
    from datasets.data_files import SPLIT_KEYWORDS

    return {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}


def _folder(path: Path, files: Sequence[Path]) -> Source:
    """A folder that the builders misread, as one split; its subfolders, if any, are classes."""
    pictures = open_files(files)
    parts = [file.relative_to(path).parts for file in files]
    if all(len(p) > 1 for p in parts):
        classes = [as_text(p[0]) for p in parts]
        labels, names = _indexed(classes, set(classes))
        pictures = replace(pictures, labels=labels, class_names=names)
    return Source(str(path), {"train": lambda: pictures})


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

    def name_of(i: int) -> str:
        return as_text((rows[i].as_py() or {}).get("path") or f"{name}[{i}]")

    def open_image(i: int) -> Image.Image:
        item = rows[i].as_py()
        if item is None:
            raise ValueError("no picture in this row")
        data = item["bytes"]
        return Image.open(io.BytesIO(Path(item["path"]).read_bytes() if data is None else data))

    labels, class_names = _labels(splits, split, spec, column, label_column)
    return Pictures(len(dataset), open_image, name_of, labels, class_names)


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


def _is_class(kind: Any) -> bool:
    """Whether each row of a column of this kind holds one class: a whole number or a name."""
    import datasets

    one = isinstance(kind, datasets.ClassLabel | datasets.Value)  # a single value, not an array
    return one and ("string" in kind.dtype or "int" in kind.dtype or kind.dtype == "bool")


def _labels(
    splits: Any, split: str, spec: str, image_column: str, label_column: str | None
) -> Classes:
    import datasets

    name = f"{spec}/{split}"
    features = splits[split].features
    column = label_column_of(features, name, label_column)
    if column is None:
        return _class_folders(splits, split, spec, image_column)
    kind, values = features[column], splits[split][column][:]
    if "string" in kind.dtype:
        # The classes of all splits, so that an index means the same class in each.
        classes = {value for part in splits.values() for value in part.unique(column)}
        return _indexed(values, classes - {None})
    numbers = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    return numbers, tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None


def _class_folders(splits: Any, split: str, spec: str, column: str) -> Classes:
    """The classes of a folder some of whose splits have class folders: `train/cat/1.png`.

    The library labels either all splits or, if one of them has no class folders, none.
    """
    root = Path(spec)
    if not root.is_dir() or len(splits) == 1:
        return None, None
    classes = {
        name: [_class_folder(path, root) for path in _paths(part, column)]
        for name, part in splits.items()
    }
    labelled = {name: folders for name, folders in classes.items() if None not in folders}
    names = {folder for folders in labelled.values() for folder in folders}
    if split not in labelled or len(names) < 2:
        return None, None
    return _indexed(labelled[split], {str(name) for name in names})


def _class_folder(path: str | None, root: Path) -> str | None:
    """`cat` for root/train/cat/1.png; None for root/test/1.png, and for a path outside root."""
    if path is None or root.absolute() not in Path(path).parents:
        return None
    parts = Path(path).relative_to(root.absolute()).parts
    return parts[-2] if len(parts) > 2 else None


def _paths(dataset: Any, column: str) -> list[str | None]:
    """The files of a split's pictures; None for a picture that is stored in the data set itself."""
    import datasets
    import pyarrow.compute as pc

    pictures = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    paths: list[str | None] = pc.struct_field(
        pictures.with_format("arrow")[:][column], "path"
    ).to_pylist()
    return paths


def _indexed(values: Iterable[str | None], classes: set[str]) -> Classes:
    names = sorted(classes)
    index = {name: i for i, name in enumerate(names)}
    return np.array([-1 if v is None else index[v] for v in values], dtype=np.int64), tuple(names)
