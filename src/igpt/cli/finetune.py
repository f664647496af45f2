"""`igpt finetune`: a pretrained model learns to classify, in the same training loop."""

from __future__ import annotations

import argparse
import os
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
from igpt.cli.report import Report, draw_losses, stopped
from igpt.config import FINETUNING, Say, UserError

if TYPE_CHECKING:
    from igpt.config import Recipe

EXAMPLE = "igpt finetune runs/digits --out runs/digits-classes --steps 300 finetune.layer_decay=0.8"

SHORT = training_flags(
    data="labelled pictures: a Hub id, folder, .npz or `digits`; default: RUN's own",
    own={
        "--labels-per-class": ("finetune.labels_per_class", "learn from so many; default all"),
        "--metric": ("finetune.metric", "accuracy or balanced_accuracy: validation chooses by it"),
        "--freeze": ("finetune.freeze", "first blocks that stay as they are (and the embeddings)"),
    },
    steps=f"optimizer steps at most; default {FINETUNING.steps}",
    lr="learning rate after the warm-up; default a tenth of the largest that RUN was trained with",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "igpt finetune RUN [--out NEW] [options] [section.field=value ...]\n"
        "       igpt finetune --out NEW --resume"
    )
    parser.add_argument(
        "words",
        metavar="RUN",
        nargs="*",
        help="a run, a model folder or a Hub id to start from; then any field of the recipe by its "
        "dotted name, like train.grad_clip=1",
    )
    parser.add_argument(
        "--out", metavar="NEW", type=Path, help="new run directory; default runs/RUN-classes"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    add_short_flags(parser, SHORT)


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.finetune import finetune

    out, recipe = _run_and_recipe(args)
    done = finetune(recipe, out, resume=args.resume, say=say)
    outcome = done.outcome
    draw_losses(out)
    values = {"run": str(out), "step": outcome.step, f"best_val_{done.metric}": done.best}
    if outcome.signal is not None:
        again = shlex.join(["igpt", "finetune", "--out", str(out), "--resume"])
        return stopped(outcome.signal, f"step {outcome.step}", again, values)
    best = "" if done.best is None else f", best validation {done.metric} {100 * done.best:.1f} %"
    why = ", as validation did not improve any more" if outcome.stopped_early else ""
    tested = ["IMAGES"] if done.test_split is None else ["--split", done.test_split]
    then = shlex.join(["igpt", "predict", str(out), *tested])
    return Report(f"{out}: {outcome.step} steps{why}{best}; then: {then}", values)


def _run_and_recipe(args: argparse.Namespace) -> tuple[Path, Recipe | None]:
    """The run's directory, and its recipe: a new one, or that of the run there if it is resumed."""
    from igpt.finetune import finetune_recipe

    name, dotted = name_and_fields(args.words, "RUN")
    given = [*overrides(args, SHORT), *dotted]
    every = {"finetune.labels_per_class=all": "finetune.labels_per_class=null"}
    changes = [every.get(word, word) for word in given]
    start = None if name is None else Path(name)
    if start is None and not args.resume:
        raise UserError("name the RUN to start from")
    out: Path | None = args.out or (  # `.` and `..` have a name only as whole paths
        start and Path("runs") / f"{Path(os.path.abspath(start)).name}-classes"
    )
    if out is None:
        raise UserError("name the run to go on with: --out NEW, or the RUN that it started from")
    if start is None:
        return out, resumed_recipe(out, changes)
    return out, recipe_from_start(finetune_recipe, start, changes, out if args.resume else None)
