"""`igpt import`: make a model folder of a model in a foreign format."""  # noqa: N999 - commands are loaded by name

from __future__ import annotations

import argparse
from pathlib import Path

from igpt.cli.report import Report
from igpt.config import Say, UserError

EXAMPLE = "igpt import openai igpt-s/model.ckpt-1000000 --out runs/igpt-s"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=["openai"], help="openai: a TensorFlow checkpoint")
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CKPT",
        help="what the names of its files begin with, like model.ckpt-1000000",
    )
    parser.add_argument(
        "--clusters", type=Path, metavar="NPY", help="default: kmeans_centers.npy beside it"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.disk import new_folder
    from igpt.folder import model_codec, save_model
    from igpt.interop.download import CLUSTERS
    from igpt.interop.openai import read_openai
    from igpt.palette import Palette

    with new_folder(args.out) as folder:
        beside = args.checkpoint.with_name(CLUSTERS)
        if args.clusters is None and not beside.is_file():
            raise UserError(f"no colour clusters: {beside} is not there, and no --clusters given")
        clusters = args.clusters or beside
        palette = Palette.load(clusters)
        model = read_openai(args.checkpoint)
        config = model.config
        codec = model_codec(config, palette, "raster", clusters)  # the order of OpenAI's pixels
        classes = tuple(str(i) for i in range(config.n_classes))
        save_model(folder, model, codec, classes)
    size = codec.image_size
    return Report(
        f"{config.kind}, {config.n_layer} layers, width {config.n_embd}, {config.n_head} heads, "
        f"{size}x{size} pixels of {config.vocab_size} colours, {len(classes)} classes: {args.out}",
        {
            "out": str(args.out),
            "objective": config.objective,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "vocab_size": config.vocab_size,
            "image_size": size,
            "n_classes": config.n_classes,
        },
    )
