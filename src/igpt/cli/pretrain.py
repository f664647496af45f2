"""`igpt pretrain`: a recipe, what the command line changes in it, and the run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.arguments import (
    add_short_flags,
    name_and_fields,
    overrides,
    recipe_from_start,
    resumed_recipe,
    training_flags,
)
from igpt.cli.report import Report, and_skipped, draw_losses, stopped
from igpt.config import PRESETS, Say, UserError
from igpt.recipes import load_recipe, shipped_recipes

if TYPE_CHECKING:
    from igpt.config import Recipe

EXAMPLE = "igpt pretrain digits --out runs/digits --steps 200 train.grad_clip=1"

SHORT = training_flags(
    data="Hugging Face id, local folder, .npy/.npz or `digits`",
    own={
        "--size": ("data.image_size", "side of the pictures, in pixels"),
        "--colors": ("palette.colors", "colours of the palette"),
        "--palette": ("palette.path", "a .npy of clusters to use instead of fitting one"),
        "--order": ("order", "raster, column, snake, hilbert or random:SEED"),
        "--objective": ("objective", "ar (predict the next pixel) or bert (predict masked ones)"),
        "--model": ("model.preset", f"one of {', '.join(PRESETS)}"),
    },
    steps="optimizer steps",
    lr="largest learning rate",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "igpt pretrain RECIPE|--init-from MODEL --out RUN [options] [section.field=value ...]"
    )
    parser.add_argument(
        "words",
        metavar="RECIPE",
        nargs="*",
        help=f"a .yaml file or one of: {', '.join(shipped_recipes())}; then any field of it by its "
        "dotted name, like train.grad_clip=1",
    )
    parser.add_argument(
        "--init-from",
        metavar="MODEL",
        type=Path,
        help="in place of a recipe, a trained model to go on from: a run, a model folder or a Hub "
        "id; it is trained as it was, at a tenth of the rate",
    )
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="run directory")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="read --data as a stream, never whole: a Hub id, a folder, or .tar or .parquet shards "
        "by their path or URL",
    )
    add_short_flags(parser, SHORT)


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.pretrain import pretrain

    recipe = _recipe(args)
    done = pretrain(recipe, args.out, resume=args.resume, say=say)
    outcome = done.outcome
    draw_losses(args.out)
    values = {
        "run": str(args.out),
        "step": outcome.step,
        "best_val_loss": outcome.best,
        "skipped": len(done.skipped),
    }
    skipped = and_skipped(len(done.skipped))
    if outcome.signal is not None:
        again = shlex.join(["igpt", "pretrain", "--out", str(args.out), "--resume"])
        return stopped(outcome.signal, f"step {outcome.step}{skipped}", again, values)
    best = outcome.best
    loss = "" if best is None else f", best validation {best:.4f} nats/pixel"
    why = ", as validation did not improve any more" if outcome.stopped_early else ""
    return Report(f"{args.out}: {outcome.step} steps{why}{loss}{skipped}", values)


def _recipe(args: argparse.Namespace) -> Recipe | None:
    """The recipe that the command line asks for; None for --resume where there is no run yet."""
    from igpt.pretrain import pretrain_recipe

    name, dotted = name_and_fields(args.words, "recipe")
    streaming = ["data.streaming=true"] if args.streaming else []
    changes = overrides(args, SHORT) + streaming + dotted
    if name is not None and args.init_from is not None:
        raise UserError(
            f"give a recipe or --init-from, not both: {args.init_from} brings a recipe of its own"
        )
    if name is not None:
        return load_recipe(name, changes)
    if args.init_from is not None:
        resumed = args.out if args.resume else None
        return recipe_from_start(pretrain_recipe, args.init_from, changes, resumed)
    if args.resume:
        return resumed_recipe(args.out, changes)
    shipped = ", ".join(shipped_recipes())
    raise UserError(f"name a recipe: a .yaml file or one of {shipped}; or give --init-from MODEL")
