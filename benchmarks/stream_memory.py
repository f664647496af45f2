"""Does the memory of reading a stream depend on how much is read?

    python benchmarks/stream_memory.py --pictures 1000

Writes two sets of WebDataset shards into a temporary folder, one ten times the other, and takes all
training batches of an epoch of each, as `igpt pretrain` does: read as a stream, and loaded whole.
Every reading is a process of its own. Prints the largest resident memory of each process, and what
of it came after the imports. The palette is given: fitting one takes as much for every set of
20,000 pictures and more.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SHARD = 500  # pictures
SIDE = 64  # of a picture in a shard, in pixels
BATCH, HELD_OUT, BUFFER = 50, 100, 500
WORDS = [
    *(f"data.image_size={SIDE}", f"data.validation_pictures={HELD_OUT}"),
    *(f"data.shuffle_buffer={BUFFER}", f"train.batch_size={BATCH}"),
]


def write_set(folder: Path, pictures: int) -> int:
    """Shards of noise, each picture another; their bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for first in range(0, pictures, SHARD):
        with tarfile.open(folder / f"train-{first // SHARD:05}.tar", "w") as archive:
            for number in range(first, min(first + SHARD, pictures)):
                buffer = io.BytesIO()
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
                entry = tarfile.TarInfo(f"{number:08}.png")
                entry.size = buffer.tell()
                buffer.seek(0)
                archive.addfile(entry, buffer)
    return sum(path.stat().st_size for path in folder.iterdir())


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(folder: Path, streaming: str, pictures: int) -> None:
    """Read an epoch and print what it took."""
    import datasets  # noqa: F401

    from igpt.pretrain import training_data
    from igpt.recipes import load_recipe

    before = peak()
    palette = folder.with_name("palette.npy")
    words = [f"data.source={folder}", f"data.streaming={streaming}", f"palette.path={palette}"]
    loader = training_data(load_recipe("digits", [*WORDS, *words]), None, lambda _: None).loader
    for step in range((pictures - HELD_OUT) // BATCH):
        loader.batch(step, range(BATCH))
    loader.close()
    print(json.dumps({"peak": peak(), "imports": before}))


def measure(folder: Path, streaming: str, pictures: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--read", str(folder), streaming, str(pictures)]
    home = {**os.environ, "HF_HOME": str(folder.parent)}  # where a set that is loaded is copied to
    done = subprocess.run(command, env=home, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000, help="of the smaller set")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        folder, streaming, pictures = args.read
        read(Path(folder), streaming, int(pictures))
        return
    print(f"{'':8} {'pictures':>9} {'shards':>9} {'peak':>9} {'after the imports':>18}")
    with tempfile.TemporaryDirectory() as temporary:
        clusters = np.random.default_rng(0).uniform(-1, 1, (64, 3)).astype(np.float32)
        np.save(Path(temporary) / "palette.npy", clusters)
        for pictures in (args.pictures, 10 * args.pictures):
            folder = Path(temporary) / str(pictures)
            size = write_set(folder, pictures)
            for name, streaming in (("streamed", "true"), ("loaded", "false")):
                found = measure(folder, streaming, pictures)
                after = found["peak"] - found["imports"]
                print(
                    f"{name:8} {pictures:9,} {size / 1e6:6.0f} MB {found['peak'] / 1e6:6.0f} MB "
                    f"{after / 1e6:15.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
