"""Folders of picture files: which folders are splits, and which are classes.

The `datasets` library decides this by names too, but takes what it does not expect for something
else: a stray picture beside `training_set` and `test_set` would put the test pictures among those
to train on. Here a folder is read in one way or refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from igpt.config import UserError
from igpt.data.metadata import METADATA, Metadata, read_sheets
from igpt.data.pictures import (
    Classes,
    Pictures,
    Source,
    as_text,
    file_pictures,
    index_classes,
    only_pictures,
    visible_files,
)
from igpt.data.splits import VALIDATION_NAMES

# Names of folders and the splits that they mean: those of the `datasets` library.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(VALIDATION_NAMES, "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
OTHER_METADATA = ("metadata.jsonl", "metadata.parquet")  # labels that the library reads
ROW_FILES = re.compile(r"\.(parquet|arrow|tar|tgz|tar\.\w+)$")  # files that hold rows


@dataclass(frozen=True)
class PictureFolder:
    """A folder of picture files."""

    root: Path
    files: list[Path]  # at least one
    metadata: Metadata | None


def is_saved(folder: Path) -> bool:
    """Whether the `datasets` library saved a data set there, which it loads in another way."""
    of_one_split = ("state.json", "dataset_info.json")
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in of_one_split
    )


def picture_folder(folder: Path, label_column: str | None = None) -> PictureFolder | None:
    """A folder of picture files; None for one that the library is to read.

    That is one with metadata of its other kinds, a saved data set, or one with more bytes of rows
    than of pictures. Raises UserError for archives alone, and as `read_sheets`.
    """
    if is_saved(folder):
        return None
    files = visible_files(folder)
    if any(path.name in OTHER_METADATA for path in files):
        return None
    pictures = only_pictures(files)
    sheets = [path for path in files if path.name == METADATA]
    rows = [path for path in files if ROW_FILES.search(path.name.lower())]
    archives = [path for path in files if path.suffix.lower() == ".zip"]
    if rows and _bytes(rows) >= _bytes(pictures):
        return None
    if archives and not (rows or pictures):
        raise UserError(f"{archives[0]} is an archive: unpack it first")
    if not (pictures or sheets):
        return None
    if others := rows + archives:
        warnings.warn(f"{others[0]} is beside pictures, and is passed over", stacklevel=2)
    if not sheets:
        return PictureFolder(folder, pictures, None)
    metadata = read_sheets(sheets, label_column)
    return PictureFolder(folder, metadata.listed(folder, pictures), metadata)


def _bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def open_picture_folder(found: PictureFolder) -> Source:
    """The splits of a folder of picture files, with the classes of each.

    Its metadata tell them, or else its folders. Raises UserError as `split_files` and
    `Metadata.classes`.
    """
    root = found.root
    splits = find_splits(root, found.files)
    of_split = _divide(root, found.files, splits)
    told = found.metadata and found.metadata.classes(of_split)
    classes = told or _classes(splits, of_split)

    def open_split(split: str) -> Pictures:
        labels, names = classes[split]
        return replace(file_pictures(of_split[split]), labels=labels, class_names=names)

    return Source(
        str(root),
        {split: partial(open_split, split) for split in of_split},
        lambda split: stream_order(root, of_split[split]),
    )


def stream_order(folder: Path, files: Sequence[Path]) -> npt.NDArray[np.int64]:
    """The places [N] of a folder's `files` in the order in which they are streamed.

    A stream begins with what is held out and what the palette is fitted on, so classes are mixed:
    by digests of the names, which stay where the folder is moved, or gets a few pictures more.
    """

    def digest(i: int) -> bytes:
        name = os.fsencode(files[i].relative_to(folder).as_posix())
        return hashlib.blake2b(name, digest_size=8).digest()

    return np.array(sorted(range(len(files)), key=digest), dtype=np.int64)


def split_files(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split; a warning tells of those that are in none.

    Raises UserError where it is not clear which folder is a split.
    """
    return _divide(folder, files, find_splits(folder, files))


def _divide(
    folder: Path, files: Sequence[Path], splits: Mapping[str, Path]
) -> dict[str, list[Path]]:
    below = {
        parent: {name for name, root in splits.items() if root in (parent, *parent.parents)}
        for parent in {file.parent for file in files}
    }
    found = {name: [f for f in files if name in below[f.parent]] for name in splits}
    if left_out := len(files) - sum(map(len, found.values())):
        names = ", ".join(sorted(root.name for root in splits.values()))
        warnings.warn(f"{left_out:,} pictures of {folder} are in none of {names}", stacklevel=2)
    return found


def find_splits(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The folder of each split's pictures; {"train": `folder`} where there are no splits.

    They are in `folder`, or together in one of the folders below. Raises UserError where they are
    in several of these, and as `split_names`.
    """
    inside: dict[Path, set[str]] = defaultdict(set)  # the folders with pictures in each folder
    held = {parent.relative_to(folder) for parent in {file.parent for file in files}}
    for place in {above for below in held for above in (below, *below.parents)}:
        if place != Path():
            inside[place.parent].add(place.name)
    found: dict[Path, dict[str, str]] = {}
    for place in sorted(inside, key=lambda place: (len(place.parts), place)):
        if not found.keys() & set(place.parents):  # below a split's folder are classes
            names = split_names(inside[place], folder / place)
            found |= {place: names} if names else {}
    if len(found) > 1:
        listed = ", ".join(str(folder / place) for place in list(found)[:3])
        raise UserError(f"{folder} has splits in several folders: give one of {listed}")
    if found:
        ((place, names),) = found.items()
        return {split: folder / place / name for split, name in names.items()}
    for place in sorted(files[0].relative_to(folder).parents):
        whole = folder / place
        if place.name.lower() in SPLITS and all(whole in file.parents for file in files):
            return {SPLITS[place.name.lower()]: whole}  # the only split that there is
    return {"train": folder}


def split_names(names: Collection[str], where: Path) -> dict[str, str]:
    """Which of the folders called `names` are splits, by split: two or more of them, or none.

    They are called `train` and `test`, or contain such words: `training_set` and `test_set`. A
    single one is a class among others. Raises UserError, with `where` they are, if it is not clear.
    """
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)  # by the words beside the split's
    for name in sorted(names):
        # `Training_set2` is training and set.
        words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
        if len(known := [word for word in words if word in SPLITS]) == 1:
            beside = " ".join("*" if word in SPLITS else word for word in words)
            alike[beside].append((SPLITS[known[0]], name))
    every = [pair for pairs in alike.values() for pair in pairs]
    if not _are_several(every):
        return {}
    several = [pairs for pairs in alike.values() if _are_several(pairs)]
    plain = alike.get("*", [])
    chosen = plain if plain in several else several[0] if len(several) == 1 else every
    found = dict(chosen)
    if len(found) < len(chosen) or not (several or plain):
        listed = ", ".join(name for _, name in every)
        raise UserError(f"which folders of {where} are splits? {listed}: rename or move some")
    return {split: found[split] for split in dict.fromkeys(SPLITS.values()) if split in found}


def _are_several(pairs: Sequence[tuple[str, str]]) -> bool:
    return len({split for split, _ in pairs}) > 1


def _classes(splits: Mapping[str, Path], files: Mapping[str, Sequence[Path]]) -> dict[str, Classes]:
    """The classes of each split: the outermost folders below it of which there are several.

    A split may have pictures of only one of the classes that the others have. Folders that hold all
    of a split, like `images`, are no classes, and pictures beside the classes' folders have none.
    """
    folders = {
        split: [file.relative_to(root).parts[:-1] for file in files[split]]
        for split, root in splits.items()
    }
    levels = {split: _levels(found) for split, found in folders.items()}  # names at each level
    several = {name for of in levels.values() for names in of if len(names) > 1 for name in names}
    chosen: dict[str, list[str | None]] = {}
    for split, of_split in levels.items():
        for level, names in enumerate(of_split):
            if len(names) > 1 or names <= several:
                chosen[split] = [
                    as_text(parts[level]) if len(parts) > level else None
                    for parts in folders[split]
                ]
                break
    classes = {name for every in chosen.values() for name in every if name is not None}
    indexed = {split: index_classes(every, classes) for split, every in chosen.items()}
    return {split: indexed.get(split, (None, None)) for split in splits}


def _levels(folders: Sequence[tuple[str, ...]]) -> list[set[str]]:
    """The names at each level, up to the first with several."""
    found: list[set[str]] = []
    for level in range(max(map(len, folders), default=0)):
        found.append({parts[level] for parts in folders if len(parts) > level})
        if len(found[-1]) > 1:
            break
    return found
