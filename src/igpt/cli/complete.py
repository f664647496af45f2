"""`igpt complete`: several ways to go on from a picture's first part, as a sheet."""

from __future__ import annotations

import argparse
from pathlib import Path

from igpt.cli.arguments import (
    add_data,
    add_run,
    add_sampling,
    load_pictures,
    refuse_two_sources,
    sampling,
)
from igpt.cli.report import Report
from igpt.config import Say

EXAMPLE = "igpt complete runs/digits --images photo.png --keep 0.5 -n 4 --out sheet.png"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--images", nargs="+", type=Path, help="picture files or folders of them")
    add_data(parser)
    parser.add_argument("--keep", type=float, default=0.5, help="part that is given; default 0.5")
    parser.add_argument("-n", type=int, default=4, help="completions a picture; default 4")
    add_sampling(parser)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="default sheet.png")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.pipeline import load
    from igpt.plots import completion_sheet, require_picture, save_image

    refuse_two_sources(args)
    require_picture(args.out)
    pipeline = load(args.run)
    images = load_pictures(args, pipeline.image_size)
    completed = pipeline.continue_from(images, args.keep, args.n, sampling(args))
    sheet = completion_sheet(pipeline.known(args.keep), completed, pipeline.quantize(images))
    save_image(sheet, args.out)
    count = len(images)
    return Report(
        f"{args.n} completions of {count} pictures: {args.out}",
        {"out": str(args.out), "count": count, "n": args.n},
    )
