"""Labels in a `metadata.csv` beside picture files: a line for each, as `datasets` has them.

The library itself reads them with pandas, which takes classes called None or NA for missing labels
and 007 for 7, and fails where the first ten thousand pictures have no label and a later one has a
name. Here only an empty field is a missing label or, among numbers, -1 and NaN.
"""

from __future__ import annotations

import csv
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from igpt.config import UserError
from igpt.data.pictures import MINUS_ONE, Classes, as_text, index_classes

METADATA = "metadata.csv"
FILE_COLUMNS = ("file_name", "image_file_name")  # of a picture's path from its metadata's folder
USUAL_LABELS = ("label", "labels", "class", "cls")  # the last is WebDataset's
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE)
WHOLE = re.compile(r"\+?(-?(?:0|[1-9]\d*))(?:\.0*)?")  # 3, and 3.0 where some are missing
PADDED = re.compile(r"[-+]?0\d")  # 007 is a name


@dataclass(frozen=True)
class Metadata:
    """What the metadata of a folder say of its pictures."""

    sheets: tuple[Path, ...]  # the files
    label_column: str | None  # that was asked for; None: any that has a usual name
    rows: Mapping[str, tuple[str, ...]]  # by the path of the picture: its fields in `_wanted`

    def listed(self, folder: Path, pictures: Sequence[Path]) -> list[Path]:
        """The files that are listed, in that order, and `pictures` without metadata above them.

        A warning counts the pictures that have metadata above them and are not listed.
        """
        roots = {sheet.parent for sheet in self.sheets}
        others = [file for file in pictures if str(file) not in self.rows]
        kept = [file for file in others if roots.isdisjoint(file.parents)]
        if left_out := len(others) - len(kept):
            warnings.warn(
                f"{self.sheets[0]} lists {len(self.rows):,} pictures, and {left_out:,} others in "
                f"{folder} are left out",
                stacklevel=1,
            )
        return [*map(Path, self.rows), *kept]

    def classes(self, of_split: Mapping[str, Sequence[Path]]) -> dict[str, Classes] | None:
        """The classes of each split's pictures; None where no column has any.

        Raises UserError where the values of a column that was asked for are not classes.
        """
        for place, name in enumerate(_wanted(self.label_column)):
            values = {
                split: [self.rows[str(file)][place] if str(file) in self.rows else "" for file in f]
                for split, f in of_split.items()
            }
            try:
                names = _class_names({v for every in values.values() for v in every} - {""})
            except ValueError as error:
                message = f"{self.sheets[0]}: labels in '{name}' must be whole numbers or names"
                if self.label_column is not None:
                    raise UserError(f"{message}, and {error}") from error
                warnings.warn(f"{message}, and are passed over: {error}", stacklevel=1)
                continue
            if names:
                classes = set(names.values())
                return {
                    split: index_classes([names.get(value) for value in every], classes)
                    for split, every in values.items()
                }
        return None


def read_sheets(sheets: Sequence[Path], label_column: str | None = None) -> Metadata:
    """What `metadata.csv` files say, of those in folders of each other the inner one.

    A warning counts files that are listed and not there. Raises UserError for a broken file, where
    no file is there, and where there is no column `label_column`.
    """
    wanted = _wanted(label_column)
    columns: dict[str, None] = {}
    rows: dict[str, tuple[str, ...]] = {}
    missing: list[str] = []
    for sheet in sorted(sheets, key=lambda sheet: len(sheet.parts)):
        here = set[str]()
        for line, name, row in _read(sheet):
            columns |= dict.fromkeys(row)
            path = str(sheet.parent / name)
            if path in here:
                raise UserError(f"{sheet}, line {line}: {as_text(name)} is listed already")
            here.add(path)
            if not os.path.isfile(path):
                missing.append(as_text(path))
                continue
            rows[path] = tuple(sys.intern(row.get(column, "").strip()) for column in wanted)
    if not rows:
        raise UserError(f"{sheets[0]} lists no file that is there" + _first(missing))
    if label_column is not None and label_column not in columns:
        raise UserError(f"{sheets[0]} has no column '{label_column}', only: {', '.join(columns)}")
    if missing:
        warnings.warn(
            f"{sheets[0]}: {len(missing):,} of its files are not there{_first(missing)}",
            stacklevel=1,
        )
    return Metadata(tuple(sheets), label_column, rows)


def _wanted(label_column: str | None) -> tuple[str, ...]:
    """The columns that may be labels."""
    return USUAL_LABELS if label_column is None else (label_column,)


def _first(missing: Sequence[str]) -> str:
    return f", like {missing[0]}" if missing else ""


def _read(sheet: Path) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Of each row its line, the path of its picture below the sheet's folder, and its fields."""
    csv.field_size_limit(2**31 - 1)  # of all columns that are not read, too
    try:
        with sheet.open(newline="", encoding="utf-8-sig") as file:  # sig: as Excel writes it
            reader = csv.DictReader(file, restval="", skipinitialspace=True, strict=True)
            columns = reader.fieldnames or ()
            column = next((name for name in FILE_COLUMNS if name in columns), None)
            if column is None or len(set(columns)) < len(columns):
                what = (
                    f"has no column {FILE_COLUMNS[0]}" if column is None else "has two of a column"
                )
                raise UserError(f"{sheet} {what}: {', '.join(columns) or 'it is empty'}")
            for row in reader:
                where = f"{sheet}, line {reader.line_num}"
                if None in row:
                    raise UserError(f"{where}: more fields than columns")
                name = row[column]
                if "\\" in name and not (sheet.parent / name).is_file():
                    name = name.replace("\\", "/")  # as Windows writes paths
                name = os.path.normpath(name)
                if not row[column] or name.startswith("..") or os.path.isabs(name):
                    raise UserError(f"{where}: '{as_text(row[column])}' is no file below it")
                yield reader.line_num, name, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {sheet}: {error}") from error


def _class_names(labels: Collection[str]) -> dict[str, str]:
    """The class that each label means, less missing ones; ValueError where they are quantities."""
    if not all(NUMBER.fullmatch(label) and not PADDED.match(label) for label in labels):
        return {label: label for label in labels}
    whole = {label: WHOLE.fullmatch(label) for label in labels if label.lower() != "nan"}
    if strange := [label for label, match in whole.items() if match is None]:
        raise ValueError(f"'{min(strange)}' is neither")
    names = {label: match[1] for label, match in whole.items() if match is not None}
    if set(names.values()) == {"-1", "1"}:
        raise ValueError(MINUS_ONE)
    return {label: name for label, name in names.items() if name != "-1"}
