"""`igpt sample`: new pictures, as a sheet."""

from __future__ import annotations

import argparse
from pathlib import Path

from igpt.cli.arguments import add_run, add_sampling, sampling
from igpt.cli.report import Report
from igpt.config import Say

EXAMPLE = "igpt sample runs/digits -n 16 --temperature 0.9 --out sheet.png"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("-n", type=int, default=16, help="pictures; default 16")
    add_sampling(parser)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="default sheet.png")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.pipeline import load
    from igpt.plots import picture_sheet, require_picture, save_image

    require_picture(args.out)
    pipeline = load(args.run)
    save_image(picture_sheet(pipeline.paint(args.n, sampling(args))), args.out)
    return Report(f"{args.n} samples: {args.out}", {"out": str(args.out), "count": args.n})
