"""Files from the web: OpenAI's published ones, and a download that goes on where it broke off.

A file gets its name when all of it has come; until then it is called `NAME.part`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from igpt.config import UserError

# From image-gpt's download.py: where the files are, how many shards a checkpoint has, its steps.
STORE = "https://openaipublic.blob.core.windows.net/image-gpt"
SHARDS = {"s": 32, "m": 32, "l": 64}
STEPS = (131000, 262000, 524000, 1000000)
CLUSTERS = "kmeans_centers.npy"

TIMEOUT = 30  # seconds to wait for the next byte
CHUNK = 1 << 20  # bytes
PARTIAL, UNSATISFIABLE = 206, 416  # HTTP: a range as asked for; one that the file does not have


def published_files(model: str, step: int, bert: bool) -> list[str]:
    """Addresses of a published checkpoint, without its graph, and of the colour clusters.

    `model` is a key of SHARDS, `step` one of STEPS.
    """
    shards, kind = SHARDS[model], f"igpt-{model}-bert" if bert else f"igpt-{model}"
    names = [f"data-{i:05d}-of-{shards:05d}" for i in range(shards)]
    return [
        *(f"{STORE}/checkpoints/{kind}/{step}/model.ckpt-{step}.{n}" for n in [*names, "index"]),
        f"{STORE}/color-clusters/{CLUSTERS}",
    ]


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
    if have != total:
        raise UserError(
            f"{url} broke off after {have:,} of {total:,} bytes; the same command goes on there"
        )
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
