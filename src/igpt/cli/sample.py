"""`igpt sample`: new pictures, as a sheet or one by one."""

from __future__ import annotations

import argparse

from igpt.cli.arguments import add_pictures_out, add_run, add_sampling, sampling
from igpt.cli.progress import with_progress
from igpt.cli.report import Report
from igpt.config import Say

EXAMPLE = "igpt sample runs/digits -n 16 --temperature 0.9 --out sheet.png"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("-n", type=int, default=16, help="pictures; default 16")
    add_sampling(parser)
    add_pictures_out(parser)


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.pipeline import load
    from igpt.plots.sheets import picture_sheet, require_pictures, save_pictures

    require_pictures(args.out)
    batches = load(args.run).sample_batches(args.n, sampling(args))
    names = [f"{i:05}" for i in range(args.n)]
    out = save_pictures(with_progress(batches, args.n, say), names, args.out, picture_sheet)
    return Report(f"{args.n} samples: {out}", {"out": str(out), "count": args.n})
