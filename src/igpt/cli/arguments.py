"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from igpt.config import DataConfig
    from igpt.sample import Sampling


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory or model folder")


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="D",
        help="Hugging Face id, local folder, .npy/.npz or `digits`; default: the run's own",
    )
    parser.add_argument("--split", help="default: the run's test split")
    parser.add_argument("--image-column", metavar="NAME", help="column of the pictures")
    parser.add_argument("--label-column", metavar="NAME", help="column of the labels")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1; 0: greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="only the K most likely colours")
    parser.add_argument("--top-p", type=float, metavar="P", help="only the likeliest, up to P")
    parser.add_argument("--seed", type=int, default=0)


def sampling(args: argparse.Namespace) -> Sampling:
    from igpt.sample import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.seed)


def data_config(args: argparse.Namespace) -> DataConfig:
    """The run's own data, with what the command line says instead.

    Raises UserError when neither names any.
    """
    from dataclasses import replace

    from igpt.checkpoint import RunDirectory
    from igpt.config import DataConfig, UserError

    run = RunDirectory(args.run)
    if not args.data and not run.exists():
        raise UserError(f"{args.run} has no recipe that names its data: give --data")
    config = run.recipe().data if run.exists() else DataConfig()
    if args.data and args.data != config.source:
        # Columns and splits of the run's own data mean nothing in another set.
        config = DataConfig(source=args.data, augmentation=config.augmentation)
    return replace(
        config,
        image_column=args.image_column or config.image_column,
        label_column=args.label_column or config.label_column,
        test_split=args.split or config.test_split,
    )


def load_pictures(args: argparse.Namespace, size: int) -> npt.NDArray[np.uint8]:
    """The pictures that `add_data`'s arguments name, as the model takes them: [N, size, size, 3].

    A run trained on ImageNet's random crops is given the centre crop (paper, section 3.1).
    """
    import numpy as np

    from igpt.config import UserError
    from igpt.data import decode_all, evaluation_split, fit_square, imagenet_centre, open_source

    config = data_config(args)
    source = open_source(
        config.source, image_column=config.image_column, label_column=config.label_column
    )
    pictures = evaluation_split(source, config.test_split)
    if args.limit is not None:
        if args.limit < 1:
            raise UserError(f"--limit must be at least 1, got {args.limit}")
        pictures = pictures.select(np.arange(min(args.limit, len(pictures))))
    crop = imagenet_centre if config.augmentation == "imagenet" else fit_square
    return decode_all(pictures, size, crop).images
