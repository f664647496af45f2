"""`igpt eval`: the likelihood of held-out pictures, a full pass."""

from __future__ import annotations

import argparse

from igpt.cli.arguments import (
    add_data,
    add_images,
    add_precision,
    add_run,
    add_shard,
    open_pictures,
    refuse_two_sources,
)
from igpt.cli.progress import telling
from igpt.cli.report import Report, and_skipped
from igpt.config import Say

EXAMPLE = "igpt eval runs/digits --split test"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_images(parser)
    add_data(parser)
    add_shard(parser)
    add_precision(parser, "float32")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.config import ParallelConfig
    from igpt.parallel.processes import processes, require_same, together
    from igpt.pipeline import load
    from igpt.run_data import load_named

    refuse_two_sources(args)
    parallel = ParallelConfig(shard=args.shard)
    with processes(parallel):
        pipeline = load(args.run, parallel=parallel)
        with together():
            pictures = load_named(open_pictures(args), pipeline)
        images = pictures.images
        require_same("pictures", len(images))
        say(f"{len(images):,} pictures of {pipeline.image_size}x{pipeline.image_size}")
        check = telling(len(images), say)
        result = pipeline.likelihood(images, precision=args.precision, check=check)
    values = {
        "nats_per_pixel": result.nats_per_pixel,
        "bits_per_pixel": result.bits_per_pixel,
        "nats_per_picture": result.nats_per_picture,
        "count": result.count,
        "skipped": len(pictures.skipped),
    }
    text = (
        f"{result.nats_per_pixel:.4f} nats/pixel   {result.bits_per_pixel:.4f} bits/pixel   "
        f"{result.nats_per_picture:.1f} nats/picture   {result.count:,} pictures"
        + and_skipped(len(pictures.skipped))
    )
    return Report(text, values)
