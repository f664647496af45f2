"""How fast `igpt prepare` makes 32x32 shards of JPEGs of 500x375, beside plain Pillow in a loop.

    python benchmarks/prepare_speed.py [--pictures 5000]
    python benchmarks/prepare_speed.py --memory      (of a shard, and of one six times as large)

The pictures are synthetic: smooth colours with some noise, about 70 kB each, as a photograph is. A
file stands there under five names. They are read from a folder of files, whose names every process
lists first, and from shards in WebDataset's format.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from igpt.prepare import Preparation, prepare

SIZE, WIDTH, HEIGHT = 32, 500, 375
NAMES = 5  # of each file, since writing them takes longer than reading
SHARDS = 4  # in WebDataset's format; a process takes whole ones


def write_jpegs(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(0, count, NAMES):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(0, 12, (HEIGHT, WIDTH, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
        for j in range(i + 1, min(i + NAMES, count)):
            os.link(folder / f"{i}.jpg", folder / f"{j}.jpg")


def write_shards(jpegs: Path, folder: Path) -> None:
    paths = sorted(jpegs.iterdir())
    for i in range(SHARDS):
        write_shard(paths[i::SHARDS], folder / f"{i}.tar")


def write_shard(jpegs: Sequence[Path], path: Path) -> None:
    # Else the names of one file would be links, which are no pictures to who reads a shard.
    with tarfile.open(path, "w", dereference=True) as shard:
        for jpeg in jpegs:
            shard.add(jpeg, jpeg.name)


def plain_pillow(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            scale = SIZE / min(image.size)
            size = round(image.width * scale), round(image.height * scale)
            image.convert("RGB").resize(size, Image.Resampling.BILINEAR)


def measure(source: str, out: Path, workers: int, count: int) -> str:
    """`igpt prepare` of a source of `count` pictures."""
    work = Preparation(source, SIZE, out, shard_pictures=250)
    start = time.perf_counter()
    work.pieces()  # opens the source, which a worker process does again
    opened = time.perf_counter() - start
    prepare(work, workers=workers, part=(0, 1), say=lambda _line: None)
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in (out / "data").iterdir()) / count
    return (
        f"{count / seconds:.0f} pictures/s, {count / (seconds - opened):.0f} after it was opened "
        f"({opened:.1f} s), {size:.0f} bytes each"
    )


def peak_memory(source: str, out: Path) -> int:
    """Bytes of `igpt prepare` in one process, at its largest."""
    words = ["prepare", "--data", source, "--size", str(SIZE), "--out", str(out)]
    command = [sys.executable, "-m", "igpt", *words, "--shard-pictures", "250"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, f"igpt prepare of {source} failed"
    return used.ru_maxrss * 1024


def memory(counts: tuple[int, ...] = (500, 3000)) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for count in counts:
            jpegs = Path(temporary) / f"jpegs{count}"
            jpegs.mkdir()
            write_jpegs(jpegs, count)
            shard = Path(temporary) / f"{count}.tar"
            write_shard(sorted(jpegs.iterdir()), shard)
            peak = peak_memory(str(shard), Path(temporary) / f"out{count}")
            print(f"{count} pictures, {shard.stat().st_size / 1e6:.0f} MB: {peak / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    if args.memory:
        memory()
    else:
        speed(args.pictures)


def speed(count: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "jpegs"
        folder.mkdir()
        write_jpegs(folder, count)
        mean = sum(path.stat().st_size for path in folder.iterdir()) / count
        print(f"{count} JPEGs of {mean / 1000:.0f} kB")
        start = time.perf_counter()
        plain_pillow(folder)
        print(f"plain Pillow, one process: {count / (time.perf_counter() - start):.0f} pictures/s")
        shards = Path(temporary) / "shards"
        shards.mkdir()
        write_shards(folder, shards)
        for name, source in (("folder", str(folder)), ("shards", f"{shards}/*.tar")):
            for workers in sorted({1, len(os.sched_getaffinity(0))}):
                out = Path(temporary) / f"{name}{workers}"
                print(f"{name}, {workers} processes: {measure(source, out, workers, count)}")


if __name__ == "__main__":
    main()
