"""Shards of numbered pictures: picture n is one grey of brightness n."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from igpt.palette import Palette

# Token n is the grey of picture n.
GREYS = Palette(np.linspace(-1, 1, 256, dtype=np.float32)[:, None].repeat(3, 1))


def picture(number: int, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (number,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, numbers: Iterable[int], broken: Iterable[int] = ()) -> None:
    """A shard in WebDataset's format; `broken` pictures are too short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            add(archive, f"{number:04}.png", picture(number)[: 40 if number in broken else None])


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def write_parquet(path: Path, numbers: Iterable[int]) -> None:
    """A shard in parquet, as the `datasets` library writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": picture(number), "path": None} for number in numbers]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(str(path))


def write_shards(folder: Path, kind: str, sizes: Iterable[int], first: int = 0) -> None:
    """Shards of so many pictures each, numbered on from `first`."""
    for i, size in enumerate(sizes):
        write = {"tar": write_tar, "parquet": write_parquet}[kind]
        write(folder / f"train-{i:03}.{kind}", range(first, first + size))
        first += size
