"""Labels in a `metadata.csv` beside picture files: a line for each, as `datasets` has them.

The library itself reads them with pandas, which takes classes called None or NA for missing labels
and 007 for 7, and fails where the first ten thousand pictures have no label and a later one has a
name. Here only an empty field is a missing label.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from igpt.config import UserError
from igpt.data.pictures import Classes, as_text, index_classes

NAME = "metadata.csv"
FILE = "file_name"  # the column of a picture's path from the folder of its metadata
USUAL_LABELS = ("label", "labels", "class", "cls")  # the last is WebDataset's
WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.0*)?")


@dataclass(frozen=True)
class Metadata:
    """The rows of a folder's metadata."""

    sheets: tuple[Path, ...]  # the files
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]  # by the path of the picture

    def listed(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """The pictures among the `files` of `folder`; a warning counts those that are left out.

        These are pictures that are not listed though there are metadata beside or above them.
        """
        roots = {sheet.parent for sheet in self.sheets}
        kept = [f for f in files if str(f) in self.rows or roots.isdisjoint(f.parents)]
        if left_out := len(files) - len(kept):
            warnings.warn(
                f"{self.sheets[0]} lists {len(self.rows):,} pictures, and {left_out:,} others in "
                f"{folder} are left out",
                stacklevel=1,
            )
        return kept

    def classes(
        self, of_split: Mapping[str, Sequence[Path]], column: str | None
    ) -> dict[str, Classes] | None:
        """The classes of each split's pictures by `column`, else by one that has a usual name.

        None where there is no such column. Raises UserError where there is no column `column`, or
        its values are not classes.
        """
        if column is not None and column not in self.columns:
            raise UserError(
                f"{self.sheets[0]} has no column '{column}', only: {', '.join(self.columns)}"
            )
        for name in [column] if column else USUAL_LABELS:
            values = {
                split: [self.rows.get(str(file), {}).get(name, "") for file in files]
                for split, files in of_split.items()
            }
            if names := _class_names({v for every in values.values() for v in every} - {""}):
                classes = set(names.values())
                return {
                    split: index_classes([names.get(value) for value in every], classes)
                    for split, every in values.items()
                }
            if column is not None:
                raise UserError(
                    f"{self.sheets[0]}: labels in '{column}' must be whole numbers or names"
                )
        return None


def read_metadata(sheets: Sequence[Path]) -> Metadata:
    """The rows of `metadata.csv` files; UserError for a broken one, or one that lists no file."""
    columns: dict[str, None] = {}
    rows: dict[str, Mapping[str, str]] = {}
    for sheet in sheets:
        for line, row in _read(sheet):
            columns |= dict.fromkeys(row)
            path = str(sheet.parent / os.path.normpath(row[FILE]))
            if not row[FILE] or not os.path.isfile(path):
                name = as_text(row[FILE])
                raise UserError(f"{sheet}, line {line}: there is no file '{name}' beside it")
            if rows.setdefault(path, row) is not row:
                raise UserError(f"{sheet}, line {line}: {row[FILE]} is listed already")
    if not rows:
        raise UserError(f"{sheets[0]} lists no picture")
    return Metadata(tuple(sheets), tuple(columns), rows)


def _read(sheet: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of one file with their lines' numbers; a field that is left out is empty."""
    try:
        with sheet.open(newline="", encoding="utf-8-sig") as file:  # sig: as Excel writes it
            reader = csv.DictReader(file, restval="", skipinitialspace=True)
            columns = reader.fieldnames or ()
            if FILE not in columns:
                listed = ", ".join(columns) or "it is empty"
                raise UserError(f"{sheet} has no column {FILE}: {listed}")
            for row in reader:
                if None in row:
                    raise UserError(f"{sheet}, line {reader.line_num}: more fields than columns")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {sheet}: {error}") from error


def _class_names(labels: set[str]) -> dict[str, str]:
    """The class that each label means; none where they are quantities.

    A table may write whole numbers as 3.0, where some are missing, and a missing one as NaN.
    """
    if not all(map(_is_number, labels)):
        return {label: label for label in labels}
    numbers = {label for label in labels if label.lower() != "nan"}
    whole = {label: match[1] for label in numbers if (match := WHOLE.fullmatch(label))}
    return whole if len(whole) == len(numbers) else {}


def _is_number(value: str) -> bool:
    """Whether a label is a number, and not a name like 007."""
    try:
        float(value)
    except ValueError:
        return False
    return not re.match(r"[-+]?0\d", value)
