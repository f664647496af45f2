"""`igpt fetch`: download a published checkpoint, to be imported."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from igpt.cli.report import Report
from igpt.config import Say
from igpt.interop.download import (
    SHARDS,
    STEPS,
    claim_folder,
    fetch_all,
    published_files,
    published_model,
)

EXAMPLE = "igpt fetch openai --model s --ckpt 1000000 --out igpt-s"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", choices=["openai"], help="whose: openai, as in its download.py")
    parser.add_argument("--model", choices=SHARDS, required=True, help="size")
    parser.add_argument(
        "--ckpt", type=int, choices=STEPS, required=True, help="steps that it was trained"
    )
    parser.add_argument("--bert", action="store_true", help="the BERT model, not the AR one")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: named after the model, like igpt-s"
    )


def run(args: argparse.Namespace, say: Say) -> Report:
    origin = published_model(args.model, args.bert)
    folder = args.out or Path(origin.rpartition("/")[-1])
    urls = published_files(args.model, args.ckpt, args.bert)
    with claim_folder(folder, origin):
        fetch_all(urls, folder)
    prefix = folder / f"model.ckpt-{args.ckpt}"
    return Report(
        f"{prefix}, {len(urls)} files: igpt import openai {shlex.quote(str(prefix))} --out RUN",
        {"checkpoint": str(prefix), "files": len(urls)},
    )
