"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.config import PRECISIONS, SAMPLING_PRECISIONS, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from igpt.config import Recipe
    from igpt.data.pictures import Pictures
    from igpt.probe.store import LearnedFrom
    from igpt.run_data import RunData
    from igpt.sample import Sampling


# How a recipe's field begins. A "=" alone is not enough: paths of a sweep's runs have it, too.
FIELD = re.compile(r"[\w.]+=")


def positive(word: str) -> int:
    """The type of an option that is a number from 1."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="a run, a model folder or a Hub id")


def add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        type=Path,
        help="picture files or folders of them; default: those of --data",
    )


def add_data(parser: argparse.ArgumentParser, *, limit: str | None = "default: all") -> None:
    """Which pictures; `limit` tells how many if --limit does not, None: there is no such option."""
    parser.add_argument(
        "--data",
        metavar="D",
        help="Hugging Face id, local folder, .npy/.npz or `digits`; default: the run's own",
    )
    parser.add_argument(
        "--split",
        help="train, validation, test or another of the source; default: the run's test split",
    )
    parser.add_argument("--image-column", metavar="NAME", help="column of the pictures")
    parser.add_argument("--label-column", metavar="NAME", help="column of the labels")
    if limit is not None:
        text = f"only the first N pictures; {limit}"
        parser.add_argument("--limit", type=positive, metavar="N", help=text)


def add_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard",
        type=int,
        default=1,
        metavar="N",
        help="how many of torchrun's processes share one copy of the model; default 1: each holds "
        "the whole",
    )


def add_features(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pool",
        default="mean",
        metavar="P",
        help="over positions: mean (default), grid:G (means of GxG regions), last or flatten",
    )
    add_precision(parser, "auto")


def add_precision(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=default,
        help="of matrix products; auto: bfloat16 where the hardware has it, else float32; "
        f"default {default}",
    )


def number_of_labels(word: str) -> int | None:
    """The argparse type of `--labels-per-class`; None for `all`."""
    if word == "all":
        return None
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers from 1 or all, got {word}")
    return int(word)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1; 0: greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="only the K most likely colours")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="only the likeliest colours, which together have probability P",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of all that is drawn at random; default 0"
    )
    parser.add_argument(
        "--precision",
        choices=SAMPLING_PRECISIONS,
        default="auto",
        help="of the weights and cache that a step reads; default: bfloat16 where it is fast",
    )


def add_pictures_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("sheet.png"),
        help="a sheet, a new folder (a name without a suffix) for a .png of each, or .npz; "
        "default sheet.png",
    )


def sampling(args: argparse.Namespace) -> Sampling:
    from igpt.sample import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.seed, args.precision)


def run_data(args: argparse.Namespace) -> RunData:
    """The source that `add_data`'s arguments name, as the run takes it."""
    from igpt.run_data import RunData

    return RunData.of(args.run, args.data, args.split, args.image_column, args.label_column)


def refuse_two_sources(args: argparse.Namespace) -> None:
    """UserError for picture files together with --data, or with options that go with --data."""
    if args.images and args.data:
        raise UserError("give picture files or --data, not both")
    files = bool(args.images)
    refuse_given(args, files, "with picture files", "split", "image_column", "label_column")


def refuse_given(args: argparse.Namespace, when: bool, why: str, *names: str) -> None:
    """UserError, if `when` holds, for those of the options `names` that were given: not `why`."""
    values = {name: getattr(args, name) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if when and given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{flags}: not {why}")


def open_pictures(args: argparse.Namespace, learned_from: LearnedFrom | None = None) -> Pictures:
    """The files of `args.images`, or else the pictures that `add_data`'s arguments name.

    `learned_from` as `RunData.pictures` takes it.
    """
    from igpt.data.pictures import open_files

    pictures = open_files(args.images) if args.images else run_data(args).pictures(learned_from)
    return limited(pictures, args.limit)


def limited(pictures: Pictures, limit: int | None) -> Pictures:
    """The first `limit` of the pictures; all for None."""
    import numpy as np

    if limit is None:
        return pictures
    return pictures.select(np.arange(min(limit, len(pictures))))


def spread(n: int, count: int) -> npt.NDArray[np.int64]:
    """The places of `count` of n pictures from all over the set: a folder's classes lie apart."""
    import numpy as np

    return np.linspace(0, n - 1, min(count, n)).round().astype(np.int64)


# short flag -> the recipe's field that it stands for, and its help
ShortFlags = Mapping[str, tuple[str, str]]


def training_flags(*, data: str, own: ShortFlags, steps: str, lr: str) -> ShortFlags:
    """Short flags of a command that trains: `own`, and those that every such command has.

    The others are the help of what each command says in words of its own.
    """
    return {
        "--data": ("data.source", data),
        "--image-column": ("data.image_column", "column of the pictures"),
        "--label-column": ("data.label_column", "column of the labels"),
        "--augmentation": ("data.augmentation", "none, flip, cifar or imagenet"),
        **own,
        "--steps": ("train.steps", steps),
        "--batch-size": ("train.batch_size", "pictures a step"),
        "--lr": ("train.lr", lr),
        "--precision": ("train.precision", "auto, float32 or bfloat16"),
        "--seed": ("train.seed", "of all that is drawn at random"),
        "--eval-every": ("train.eval_every", "steps between validations"),
        "--checkpoint-every": ("train.checkpoint_every", "steps between checkpoints"),
    }


def add_short_flags(parser: argparse.ArgumentParser, short: ShortFlags) -> None:
    for flag, (name, text) in short.items():
        parser.add_argument(flag, dest=name, metavar=name.split(".")[-1].upper(), help=text)


def overrides(args: argparse.Namespace, short: ShortFlags) -> list[str]:
    """What the command line says with short flags, as overrides like "train.lr=0.003"."""
    given = ((name, getattr(args, name)) for name, _ in short.values())
    return [f"{name}={value}" for name, value in given if value is not None]


def name_and_fields(words: Sequence[str], what: str) -> tuple[str | None, list[str]]:
    """The one `what` (a recipe or run) among the words, if any, and words like "train.lr=0.003"."""
    fields = [word for word in words if FIELD.match(word) and not Path(word).exists()]
    names = [word for word in words if word not in fields]
    if len(names) > 1:
        raise UserError(f"expected one {what}, got {' '.join(names)}")
    return (names[0] if names else None), fields


def recipe_and_changes(args: argparse.Namespace, short: ShortFlags) -> tuple[str, list[str]]:
    """The recipe that the command line must name, and all that it changes in it."""
    name, fields = name_and_fields(args.words, "recipe")
    if name is None:
        raise UserError("expected one recipe, got none")
    return name, overrides(args, short) + fields


def recipe_from_start(
    make: Callable[[Path, str | None], Recipe],
    start: Path,
    changes: Sequence[str],
    resumed: Path | None,
) -> Recipe:
    """The recipe that `make` derives from a trained model and a source, with the `changes`.

    Or that of the run `resumed`, if it is there; its start may have moved.
    """
    from omegaconf import OmegaConf

    from igpt.recipes import parse_overrides, with_overrides
    from igpt.warm_start import start_name

    if resumed is not None and (recipe := resumed_recipe(resumed, changes)) is not None:
        return replace(recipe, init_from=start_name(str(start)))
    source = OmegaConf.select(parse_overrides(changes), "data.source")
    return with_overrides(make(start, source), changes, f"of {start}")


def resumed_recipe(out: Path, changes: Sequence[str]) -> Recipe | None:
    """The recipe of the run in `out` with the `changes`; None when there is no run."""
    from igpt.checkpoint import RunDirectory
    from igpt.recipes import with_overrides

    run = RunDirectory(out)
    return with_overrides(run.recipe(), changes, f"of {out}") if run.exists() else None
