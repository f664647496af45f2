"""`igpt push`: share a run on the Hugging Face Hub, with a card."""

from __future__ import annotations

import argparse
from pathlib import Path

from igpt.cli.arguments import add_run
from igpt.cli.report import Report
from igpt.config import Say

EXAMPLE = "igpt push runs/digits me/digits --license mit --dry-run shared/digits"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("model_id", metavar="USER/NAME", help="the model's name on the Hub")
    parser.add_argument("--license", help="an identifier of the Hub, like mit or cc-by-4.0")
    parser.add_argument("--private", action="store_true", default=None, help="only you can see it")
    parser.add_argument("--token", help="default: the one that you logged in with")
    parser.add_argument(
        "--dry-run", type=Path, metavar="FOLDER", help="write the folder there and upload nothing"
    )


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.pipeline import load
    from igpt.share import push, write_folder

    pipeline = load(args.run)
    if args.dry_run:
        write_folder(pipeline, args.dry_run, args.model_id, args.license)
        text = f"{args.dry_run}: what `igpt push {args.run} {args.model_id}` would upload"
        return Report(text, {"out": str(args.dry_run)})
    say("painting samples, writing the card, uploading")
    address = push(
        pipeline, args.model_id, license=args.license, private=args.private, token=args.token
    )
    return Report(address, {"url": address})
