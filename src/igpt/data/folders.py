"""Folders of picture files: which folders are splits, and which are classes.

The `datasets` library decides this by names too, but takes what it does not expect for something
else: a stray picture beside `training_set` and `test_set` would put the test pictures among those
to train on. Here a folder is read in one way or refused.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from igpt.config import UserError
from igpt.data.pictures import (
    Pictures,
    Source,
    as_text,
    class_order,
    is_picture,
    open_files,
    visible_files,
)
from igpt.types import Labels

# Names of folders and the splits that they mean: those of the `datasets` library.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # labels by the file's name
DATA = (".parquet", ".arrow", ".tar")  # files that hold rows

Classes = tuple[Labels | None, tuple[str, ...] | None]  # the pictures' labels, the classes' names


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder of picture files; none for one that the library is to read.

    That is one with metadata, a saved data set, or one with as many files of rows as pictures.
    """
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return []
    files = visible_files(folder)
    if any(path.name in METADATA for path in files):
        return []
    pictures = [path for path in files if is_picture(path)]
    rows = sum(1 for path in files if path.suffix.lower() in DATA)
    return pictures if len(pictures) > rows else []


def open_picture_folder(folder: Path, files: Sequence[Path]) -> Source:
    """The splits of a folder of picture files (`picture_files`), with the classes of each.

    A split that has pictures in folders only has classes, unless it is a single folder. Raises
    UserError where it is not clear which folder is a split.
    """
    splits = find_splits(folder, files)
    of_split = {name: [f for f in files if root in f.parents] for name, root in splits.items()}
    if left_out := len(files) - sum(map(len, of_split.values())):
        names = ", ".join(sorted(root.name for root in splits.values()))
        warnings.warn(f"{left_out:,} pictures of {folder} are in none of {names}", stacklevel=2)
    classes = _classes(splits, of_split)

    def open_split(split: str) -> Pictures:
        labels, names = classes[split]
        return replace(open_files(of_split[split]), labels=labels, class_names=names)

    return Source(str(folder), {split: partial(open_split, split) for split in of_split})


def find_splits(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The folder of each split's pictures; {"train": `folder`} where there are no splits.

    Splits are called `train` and `test`, or alike but for one such word: `training_set` and
    `test_set`. They are in `folder`, or in the only folder in it.
    """
    top = folder
    while True:
        parts = [file.relative_to(top).parts for file in files]
        names = {p[0] for p in parts if len(p) > 1}
        loose = any(len(p) == 1 for p in parts)
        if found := split_names(names, alone=len(names) == 1 and not loose):
            return {split: top / name for split, name in found.items()}
        if loose or len(names) != 1:
            return {"train": folder}
        top = top / names.pop()


def split_names(names: set[str], alone: bool) -> dict[str, str]:
    """Which of the folders called `names` are splits, by split; UserError if two are the same one.

    One split beside other folders is a class like these, unless it is there `alone`.
    """
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)  # by what is left of the name
    for name in sorted(names):
        words = [word for word in re.findall("[a-z]+", name.lower()) if word in SPLITS]
        if len(words) == 1:
            rest = name.lower().replace(words[0], "", 1)
            alike[rest].append((SPLITS[words[0]], name))
    several = [pairs for pairs in alike.values() if len({split for split, _ in pairs}) > 1]
    if alone and "" in alike:
        several = [alike[""]]
    pairs = [pair for group in several for pair in group]
    found = dict(pairs)
    if len(found) < len(pairs):
        listed = ", ".join(name for _, name in pairs)
        raise UserError(f"which folders are splits? There are {listed}: rename or move some")
    return {split: found[split] for split in dict.fromkeys(SPLITS.values()) if split in found}


def _classes(splits: Mapping[str, Path], files: Mapping[str, Sequence[Path]]) -> dict[str, Classes]:
    """The classes of each split: the outermost folders below it of which there are several."""
    folders = {
        split: [file.relative_to(root).parts[:-1] for file in files[split]]
        for split, root in splits.items()
    }
    labelled = {split: found for split, found in folders.items() if all(found)}
    every = [parts for found in labelled.values() for parts in found]
    for level in range(min(map(len, every), default=0)):
        names = class_order({as_text(parts[level]) for parts in every})
        if len(names) > 1:
            index = {name: i for i, name in enumerate(names)}
            known = {
                split: np.array([index[as_text(parts[level])] for parts in found], np.int64)
                for split, found in labelled.items()
            }
            return {s: (known[s], tuple(names)) if s in known else (None, None) for s in splits}
    return dict.fromkeys(splits, (None, None))
