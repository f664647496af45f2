"""`igpt finetune`: a pretrained model learns to classify, by the same loop."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from igpt.cli.arguments import (
    add_run,
    add_short_flags,
    overrides,
    resumed_recipe,
    started_recipe,
)
from igpt.cli.report import Report, draw_losses, stopped
from igpt.config import Say

EXAMPLE = "igpt finetune runs/digits --out runs/digits-classes --steps 300 finetune.layer_decay=0.8"

# short flag -> the recipe's field, and what it is
SHORT = {
    "--data": ("data.source", "labelled pictures: a Hub id, folder, .npz or `digits`"),
    "--image-column": ("data.image_column", "column of the pictures"),
    "--label-column": ("data.label_column", "column of the labels"),
    "--augmentation": ("data.augmentation", "none, flip, cifar or imagenet"),
    "--labels-per-class": ("finetune.labels_per_class", "use so many; default all"),
    "--freeze": ("finetune.freeze", "first blocks that stay as they are"),
    "--steps": ("train.steps", "optimizer steps at most"),
    "--batch-size": ("train.batch_size", "pictures a step"),
    "--lr": ("train.lr", "learning rate after the warm-up"),
    "--precision": ("train.precision", "auto, float32 or bfloat16"),
    "--seed": ("train.seed", "of everything random"),
    "--eval-every": ("train.eval_every", "steps between validations"),
    "--checkpoint-every": ("train.checkpoint_every", "steps between checkpoints"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "igpt finetune RUN [--out NEW] [options] [section.field=value ...]"
    add_run(parser)
    parser.add_argument(
        "words", metavar="section.field=value", nargs="*", help="any field of the recipe"
    )
    parser.add_argument(
        "--out", metavar="NEW", type=Path, help="new run directory; default runs/RUN-classes"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    add_short_flags(parser, SHORT)


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.data import source_name
    from igpt.finetune import default_recipe, finetune

    given = [*overrides(args, SHORT), *args.words]
    changes = [word.replace("labels_per_class=all", "labels_per_class=null") for word in given]
    out = args.out
    if out is None:
        out = Path("runs") / f"{args.run.name}-classes"
    recipe = resumed_recipe(out, changes) if args.resume else None
    if recipe is None:
        recipe = started_recipe(default_recipe, args.run, changes)
    else:
        recipe = replace(recipe, init_from=source_name(str(args.run)))
    done = finetune(recipe, out, resume=args.resume, say=say)
    outcome = done.outcome
    draw_losses(out)
    values = {"run": str(out), "step": outcome.step, f"best_val_{done.metric}": done.best}
    if outcome.signal is not None:
        again = f"igpt finetune {args.run} --out {out} --resume"
        return stopped(outcome.signal, f"step {outcome.step}", again, values)
    best = "" if done.best is None else f", best validation {done.metric} {100 * done.best:.1f} %"
    again = f"igpt predict {out} --split test"
    return Report(f"{out}: {outcome.step} steps{best}; then: {again}", values)
