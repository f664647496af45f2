"""Files that are written whole or not at all, and read with an error that names them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from igpt.config import UserError


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and sys.platform == "win32":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file, flush it, and rename it to `path`.

    The temporary name is unique, so other threads, and machines with the same file system, may
    write the same `path` at once. A link stays one, to the new file. Raises UserError when the file
    cannot be written; `path` is then unchanged.
    """
    if path.is_symlink():
        path = path.resolve()
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        usual = stat.S_IMODE(temporary.stat().st_mode)  # the permissions that the umask leaves
        write(temporary)
        # safetensors' own writer permits the owner alone; some disks know no permissions.
        if stat.S_IMODE(temporary.stat().st_mode) != usual:
            temporary.chmod(usual)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):  # it was renamed, or never made
            temporary.unlink()


def remove_left(folder: Path, name: str = "*") -> None:
    """Remove what a process that was killed in `write_atomically` left of the files `name`."""
    for left in folder.glob(f".{name}.*.tmp"):
        if left.is_file():  # `new_folder` has such names too
            left.unlink()


def require_folder(path: Path) -> None:
    """UserError unless files can be made in a folder, which need not be there yet.

    Call it before the work whose results go there, so that they cannot be lost.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"cannot write into {path}: {there} is a file")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"cannot write into {path}: {error}") from error


def require_file(path: Path) -> None:
    """UserError unless a file can be made, or replaced, at `path`; call it before the work."""
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is {'a folder' if path.is_dir() else 'no file'}")
    require_folder(path.parent)


def require_new_folder(path: Path) -> None:
    """UserError unless `path` does not exist yet, or is an empty folder."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: give a new folder")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path} is not empty: give a new folder")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end, or is removed where that is not reached.

    Raises UserError as `require_new_folder`, and for the current folder, which it would replace.
    """
    require_new_folder(path)
    whole = path.resolve()
    if whole == Path.cwd():
        raise UserError(f"{path} is the current folder: give a new one")
    if whole.is_mount():
        raise UserError(f"{path} is where a disk is mounted: give a new folder in it")
    temporary = whole.with_name(f".{whole.name}.{uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if whole.exists():
            whole.rmdir()
        os.replace(temporary, whole)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` of a text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """`write_atomically` of a JSON object."""
    write_text(path, json.dumps(contents, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`write_atomically` of at least one row, as CSV below a line of the keys."""

    def write(temporary: Path) -> None:
        following = iter(rows)
        first = next(following)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, first, lineterminator="\n")
            writer.writeheader()
            writer.writerow(first)
            writer.writerows(following)

    write_atomically(path, write)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError when the file is missing or something else."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a JSON file") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return contents
