"""Files from the web: OpenAI's published ones, and a download that goes on where it broke off.

A file gets its name when all of it has come; until then it is called `NAME.part`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from igpt.config import UserError
from igpt.disk import flush, write_text

# From image-gpt's download.py: where the files are, how many shards a checkpoint has, its steps.
STORE = "https://openaipublic.blob.core.windows.net/image-gpt"
SHARDS = {"s": 32, "m": 32, "l": 64}
STEPS = (131000, 262000, 524000, 1000000)
CLUSTERS = "kmeans_centers.npy"
ORIGIN = "origin.txt"  # in a folder of downloads: where they are from

TIMEOUT = 30  # seconds to wait for the next byte
CHUNK = 1 << 20  # bytes
PARTIAL, UNSATISFIABLE = 206, 416  # HTTP: a range as asked for; one that the file does not have


def published_files(model: str, step: int, bert: bool) -> list[str]:
    """Addresses of a published checkpoint, without its graph, and of the colour clusters.

    `model` is a key of SHARDS, `step` one of STEPS.
    """
    shards, checkpoint = SHARDS[model], f"{published_model(model, bert)}/{step}/model.ckpt-{step}"
    names = [f"data-{i:05d}-of-{shards:05d}" for i in range(shards)]
    return [
        *(f"{checkpoint}.{name}" for name in [*names, "index"]),
        f"{STORE}/color-clusters/{CLUSTERS}",
    ]


def published_model(model: str, bert: bool) -> str:
    """The address below which all checkpoints of a model lie."""
    return f"{STORE}/checkpoints/igpt-{model}" + ("-bert" if bert else "")


@contextmanager
def claim_folder(folder: Path, origin: str) -> Iterator[None]:
    """Note in `folder` that its files are from `origin`; UserError where others are.

    The files of two models have the same names, so those of one would pass for the other's. A
    folder that was not there, and in which nothing has come at the end, is removed.
    """
    note, ours = folder / ORIGIN, not folder.exists()
    there = note.read_text(encoding="utf-8").strip() if note.is_file() else None
    if there not in (None, origin):
        raise UserError(f"{folder} has files from {there}: give another --out")
    write_text(note, f"{origin}\n")
    try:
        yield
    finally:
        if list(folder.iterdir()) == [note]:
            note.unlink()
            if ours:
                with suppress(OSError):  # what went wrong before is told
                    folder.rmdir()


def fetch_all(urls: Sequence[str], folder: Path) -> None:
    """Download each of `urls` into `folder`, with progress on stderr; see `fetch_file`."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        for number, url in enumerate(urls, 1):
            name = url.rsplit("/", 1)[-1]
            task = bar.add_task(name, total=None)

            def show(done: int, total: int, task: Any = task) -> None:
                bar.update(task, completed=done, total=total)

            fetch_file(url, folder / name, show)
            bar.remove_task(task)
            size = (folder / name).stat().st_size
            console.print(f"{number}/{len(urls)} {name}, {size:,} bytes")


def fetch_file(url: str, path: Path, show: Callable[[int, int], None]) -> None:
    """Download `url` to `path`, unless it is there; `show` is called with bytes so far and in all.

    Goes on where an earlier download broke off. Raises UserError, one line, when the server is out
    of reach, has no such file, or sends less than it announced.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    with _open(url, have) as response:
        if response.status != PARTIAL:
            have = 0  # the server ignores the range and sends the whole file
        if response.length is None:
            raise UserError(f"{url}: the server does not say how large the file is")
        total = have + response.length
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if have else "wb") as file:
            for chunk in _chunks(response):
                have += file.write(chunk)
                show(have, total)
    written = part.stat().st_size
    if written > total:  # two downloads at once have appended to it
        part.unlink()
        raise UserError(f"{url}: another download wrote the same file; run one of them again")
    if written < total:
        raise UserError(
            f"{url} broke off after {written:,} of {total:,} bytes; the same command goes on there"
        )
    flush(part)
    os.replace(part, path)


def _open(url: str, start: int) -> Any:
    """The server's answer from byte `start` on, or from 0 when the file has no such byte."""
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == UNSATISFIABLE and start:
            return _open(url, 0)
        raise UserError(f"{url}: the server answers {error.code}, {error.reason}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        host = urlsplit(url).hostname
        raise UserError(f"cannot reach {host} ({reason}): is there a network?") from error


def _chunks(response: Any) -> Iterator[bytes]:
    """The body, as far as it comes; the caller compares its length with the announced one."""
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, HTTPException):
        return
