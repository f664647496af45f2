"""`igpt complete`: several ways to go on from a picture's first part, as a sheet or one by one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.arguments import (
    add_data,
    add_pictures_out,
    add_run,
    add_sampling,
    open_pictures,
    positive,
    refuse_two_sources,
    sampling,
    spread,
)
from igpt.cli.progress import with_progress
from igpt.cli.report import Report, and_skipped
from igpt.config import Say

if TYPE_CHECKING:
    from PIL import Image

    from igpt.types import Pixels

SHOWN = 8  # pictures of a data set, unless --limit says more: completing a whole set takes hours

EXAMPLE = "igpt complete runs/digits photo.png --keep 0.5 -n 4 --out sheet.png"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="IMAGES",
        type=Path,
        help="picture files or folders of them; default: those of --data",
    )
    parser.add_argument("--images", nargs="+", type=Path, help="the same as IMAGES")
    add_data(parser, limit=f"default {SHOWN} from all over a data set, and all of IMAGES")
    parser.add_argument(
        "--keep",
        type=float,
        default=0.5,
        help="part that is given, 0 to below 1, in the model's order: in raster order the upper "
        "part of the picture; default 0.5",
    )
    parser.add_argument("-n", type=positive, default=4, help="completions a picture; default 4")
    add_sampling(parser)
    add_pictures_out(parser)


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.pipeline import load
    from igpt.plots.sheets import completion_sheet, require_pictures, save_pictures
    from igpt.run_data import load_named

    args.images = [*(args.images or []), *args.files]
    refuse_two_sources(args)
    require_pictures(args.out)
    how, pipeline = sampling(args), load(args.run)
    given, chosen = pipeline.given_mask(args.keep), open_pictures(args)
    if not args.images and args.limit is None:
        chosen = chosen.select(spread(len(chosen), SHOWN))
        say(f"{len(chosen)} pictures from all over the set: --limit takes the first ones")
    pictures = load_named(chosen, pipeline)
    images, count = pictures.images, len(pictures.names)
    batches = pipeline.complete_batches(images, args.keep, args.n, how)
    names = [f"{i:05}-{variant}" for i in range(count) for variant in range(args.n)]

    def sheet(completed: Pixels) -> Image.Image:
        return completion_sheet(given, completed, pipeline.quantize(images))

    out = save_pictures(with_progress(batches, len(names), say), names, args.out, sheet)
    values = {"count": count, "skipped": len(pictures.skipped), "pictures": pictures.names}
    return Report(
        f"{args.n} completions of {count} pictures{and_skipped(len(pictures.skipped))}: {out}",
        {"out": str(out), "n": args.n, **values},
    )
