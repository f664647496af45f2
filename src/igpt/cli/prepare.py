"""`igpt prepare`: resize a source of pictures once, into shards."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from igpt.cli.arguments import positive
from igpt.cli.report import Report
from igpt.config import Say, UserError

MOST_ON_WINDOWS = 61  # worker processes: concurrent.futures refuses more
EXAMPLE = "igpt prepare --data digits --size 16 --out digits16"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="Hugging Face id, folder, .npy/.npz, `digits`, or .tar or .parquet shards by their "
        "path or URL, like shards/*.tar or s3://bucket/{000..127}.parquet",
    )
    parser.add_argument("--image-column", metavar="NAME", help="column of the pictures")
    parser.add_argument("--label-column", metavar="NAME", help="column of the labels")
    parser.add_argument(
        "--size", type=positive, required=True, help="side of the pictures, in pixels"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder; what --data then takes")
    parser.add_argument(
        "--shard-pictures",
        type=positive,
        default=10_000,
        metavar="N",
        help="a shard; default 10,000",
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes; default: one for each core"
    )
    parser.add_argument(
        "--part",
        default="0/1",
        metavar="I/N",
        help="only every N-th shard, or file of a source of shards, from number I on: so that N "
        "machines can share the work",
    )


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.prepare import Preparation, prepare

    work = Preparation(
        args.data, args.size, args.out, args.image_column, args.label_column, args.shard_pictures
    )
    workers, began = args.workers or _cores(), time.monotonic()
    totals = prepare(work, workers=workers, part=_part(args.part), say=say)
    missing = f", {totals.missing} pieces of the source are still missing" if totals.missing else ""
    return Report(
        f"{totals.pictures:,} pictures in {totals.shards} shards, "
        f"{totals.skipped} skipped{missing}: {args.out}",
        {
            "out": str(args.out),
            "pictures": totals.pictures,
            "skipped": totals.skipped,
            "shards": totals.shards,
            "missing": totals.missing,
            "seconds": time.monotonic() - began,
        },
    )


def _cores() -> int:
    """The number of cores that this process may use, if the system tells (Linux); else of all."""
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    return min(cores, MOST_ON_WINDOWS) if sys.platform == "win32" else cores


def _part(word: str) -> tuple[int, int]:
    index, _, count = word.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--part must be I/N with I below N, like 0/4, got '{word}'")
    return int(index), int(count)
