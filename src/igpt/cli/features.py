"""`igpt features`: what a model's layers know of each picture of a split, as a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.arguments import (
    add_data,
    add_features,
    add_images,
    add_run,
    add_shard,
    open_pictures,
    positive,
    refuse_two_sources,
    run_data,
)
from igpt.cli.report import Report, and_skipped
from igpt.config import Say, UserError

if TYPE_CHECKING:
    from igpt.data.pictures import Pictures

EXAMPLE = "igpt features runs/digits --split train --layer 2 --pool mean --out features.npz"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_images(parser)
    add_data(parser)
    parser.add_argument(
        "--layer",
        default="all",
        metavar="L",
        help="a number from 0 (what enters the first block) to the number of blocks (the output), "
        "a:b (those side by side) or all (apart); default all",
    )
    add_features(parser)
    parser.add_argument(
        "--pca",
        type=positive,
        metavar="N",
        help="principal components kept of each layer's standardised features, or of those side "
        "by side; found on up to 5000 training pictures, the same for every split; default: all "
        "features",
    )
    add_shard(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="ends in .npz or .parquet"
    )


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.config import ParallelConfig
    from igpt.disk import require_file
    from igpt.parallel.processes import processes, require_same, together
    from igpt.pipeline import load
    from igpt.probe.export import export_features

    refuse_two_sources(args)
    require_file(args.out)
    parallel = ParallelConfig(shard=args.shard)
    with processes(parallel):
        pipeline = load(args.run, parallel=parallel)
        with together():
            pictures = open_pictures(args)
            known = _known(args) if args.pca else None
        require_same("pictures", len(pictures))
        done = export_features(
            pipeline.model,
            pipeline.codec,
            pictures,
            args.out,
            layer=args.layer,
            pool=args.pool,
            components=args.pca or 0,
            known=known,
            transform=pipeline.transform,
            dtype=pipeline.dtype(args.precision),
            say=say,
        )
    skipped = and_skipped(done.skipped)
    shape = " x ".join(f"{n:,}" for n in done.shape)
    return Report(
        f"features of {done.shape[0]:,} pictures, {shape} float32{skipped}: {args.out}",
        {
            "out": str(args.out),
            "shape": list(done.shape),
            "count": done.shape[0],
            "skipped": done.skipped,
        },
    )


def _known(args: argparse.Namespace) -> Pictures:
    """The training pictures that components are found on."""
    from igpt.checkpoint import recipe_of
    from igpt.data.sources import is_gone

    recipe = recipe_of(args.run)
    if args.images and (recipe is None or is_gone(recipe.data.source)):
        raise UserError(
            f"--pca is found on training pictures, and {args.run} names none that are there: "
            "give a folder as --data"
        )
    return run_data(args).unlabelled()
