"""`igpt probe`: what a frozen model knows of the classes, layer by layer and with few labels."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.arguments import (
    add_data,
    add_features,
    add_run,
    add_shard,
    number_of_labels,
    positive,
    refuse_given,
    run_data,
)
from igpt.cli.report import Report
from igpt.config import AUGMENTATIONS, METRICS, SUBSETS, Say, UserError

if TYPE_CHECKING:
    from igpt.probe.linear import FittedProbe
    from igpt.probing import ProbeOptions
    from igpt.run_data import RunData
    from igpt.study.methods import Subset
    from igpt.study.outcomes import Summary

EXAMPLE = "igpt probe runs/digits --labels-per-class 1 4 10 all --baselines"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_data(parser, limit=None)
    parser.add_argument(
        "--layer",
        nargs="+",
        default=["all"],
        metavar="L",
        help="layers to choose from: numbers from 0 (what enters the first block) to the number of "
        "blocks (the output), a:b (side by side) or all; default all",
    )
    add_features(parser)
    add_shard(parser)
    parser.add_argument(
        "--pca",
        type=int,
        metavar="N",
        help="principal components kept, 0: all features; default 256 where features outnumber "
        "labels",
    )
    parser.add_argument(
        "--labels-per-class",
        nargs="+",
        type=number_of_labels,
        default=[None],
        metavar="N",
        help="labels of each class to learn from, one number or several, or all; default all",
    )
    parser.add_argument("--seeds", type=positive, help=f"subsets of each number; default {SUBSETS}")
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default="accuracy",
        help="what validation chooses by; default accuracy",
    )
    parser.add_argument(
        "--solver",
        choices=("lbfgs", "sgd"),
        default="lbfgs",
        help="sgd: on pictures and features that are read and computed for each batch and never "
        "kept, for sets that memory does not hold",
    )
    parser.add_argument("--epochs", type=int, help="of sgd; default 100")
    parser.add_argument("--batch-size", type=int, help="of sgd; default 1024")
    parser.add_argument(
        "--lr",
        nargs="+",
        type=float,
        metavar="R",
        help="of sgd, side by side; default 30 to 0.03",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a fit by sgd that was cut short"
    )
    parser.add_argument(
        "--head",
        choices=("linear", "attention"),
        default="linear",
        help="attention: learns how to pool over positions; default linear",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also fit, on the same labels, what has no pretraining (pixels, an untrained network, "
        "a CNN), and nearest neighbours",
    )
    parser.add_argument(
        "--cnn-minutes",
        type=float,
        metavar="M",
        help="at most so long the baseline network is trained; default: as long as the run was",
    )
    parser.add_argument(
        "--augmentation",
        choices=AUGMENTATIONS,
        help="of that network's pictures, and of sgd's; imagenet, random crops, for sgd only; "
        "default: the run's own",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default RUN/probe")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.config import ParallelConfig
    from igpt.parallel.processes import processes
    from igpt.pipeline import load
    from igpt.probing import probe_run

    parallel = ParallelConfig(shard=args.shard)
    with processes(parallel):
        _check(args)
        pipeline, data = load(args.run, parallel=parallel), run_data(args)
        if args.out is None and not args.run.is_dir():
            raise UserError(f"{args.run} is no folder to keep a probe in: give --out FOLDER")
        folder: Path = args.out or args.run / "probe"
        options = _probing(args, data)
        found = probe_run(args.run, pipeline, data, options, folder, say)
    text = _text(args.metric, found.fitted, found.subset, found.summaries, folder)
    return Report(text, found.values)


def _probing(args: argparse.Namespace, data: RunData) -> ProbeOptions:
    from igpt.probe.sgd import SGDConfig
    from igpt.probing import ProbeOptions

    augmentation = args.augmentation or data.config.augmentation
    sgd = None
    if args.solver == "sgd":
        rates = None if args.lr is None else tuple(args.lr)
        given = {"epochs": args.epochs, "batch_size": args.batch_size, "rates": rates}
        said = {name: value for name, value in given.items() if value is not None}
        sgd = SGDConfig(augmentation=augmentation, **said)
    return ProbeOptions(
        layers=args.layer,
        pool=args.pool,
        precision=args.precision,
        attention=args.head == "attention",
        components=args.pca,
        sizes=args.labels_per_class,
        seeds=args.seeds or SUBSETS,
        metric=args.metric,
        sgd=sgd,
        resume=args.resume,
        baselines=args.baselines,
        cnn_minutes=args.cnn_minutes,
        # Random crops need larger pictures, and the baselines get them in the model's size.
        augmentation="none" if augmentation == "imagenet" else augmentation,
    )


def _check(args: argparse.Namespace) -> None:
    """UserError for numbers out of range, and for options of another solver or head."""
    if args.pca is not None and args.pca < 0:
        raise UserError(f"--pca must not be negative, got {args.pca}")
    if args.cnn_minutes is not None and not 0 < args.cnn_minutes < math.inf:
        raise UserError(f"--cnn-minutes must be positive and finite, got {args.cnn_minutes:g}")
    sgd, attention = args.solver == "sgd", args.head == "attention"
    if sgd and args.labels_per_class != [None]:
        raise UserError("--solver sgd takes all labels: no --labels-per-class")
    if attention and args.pool != "mean":
        raise UserError("--head attention pools by itself: no --pool")
    if not sgd and args.augmentation == "imagenet":
        raise UserError("--augmentation imagenet crops pictures anew: it needs --solver sgd")
    refuse_given(args, sgd, "with --solver sgd", "seeds", "baselines", "pca")
    every = set(args.labels_per_class) == {None}
    refuse_given(args, every, "without numbers of --labels-per-class", "seeds")
    refuse_given(args, sgd and attention, "with --solver sgd", "head")
    refuse_given(args, attention, "with --head attention", "pca", "baselines")
    refuse_given(args, not sgd, "without --solver sgd", "epochs", "batch_size", "lr", "resume")
    refuse_given(args, not args.baselines, "without --baselines", "cnn_minutes")
    trains = sgd or args.baselines
    refuse_given(args, not trains, "without --solver sgd or --baselines", "augmentation")


def _text(
    metric: str, fitted: FittedProbe, subset: Subset, summaries: Sequence[Summary], folder: Path
) -> str:
    """By layer on validation, and by labels a class and method on test."""
    layers = [
        f"  {layer:>5}  {100 * value:5.1f}{'  <- chosen' if layer == fitted.layer else ''}"
        for layer, value in fitted.by_layer.items()
    ]
    rows = [
        f"  {'all' if row.labels_per_class is None else row.labels_per_class:>5}  "
        f"{_percent(row.accuracy, row.seeds)}  {_percent(row.balanced_accuracy, row.seeds)}  "
        f"{row.method}"
        for row in summaries
    ]
    return "\n".join(
        [
            f"  layer  {metric.replace('_', ' ')} on validation, %{_of(subset, summaries)}",
            *layers,
            "",
            "  labels a class, accuracy on test, balanced accuracy, %",
            *rows,
            "",
            f"probe, figures and results.json: {folder}",
        ]
    )


def _of(subset: Subset, summaries: Sequence[Summary]) -> str:
    """Which labels the table by layer is of, where there are several."""
    if len({summary.labels_per_class for summary in summaries}) == 1 and summaries[0].seeds == 1:
        return ""
    size = "all labels" if subset.per_class is None else f"{subset.per_class} labels a class"
    return f" ({size}, seed {subset.seed})"


def _percent(spread: tuple[float, float], seeds: int) -> str:
    mean, deviation = (100 * value for value in spread)
    return f"{mean:5.1f} ± {deviation:3.1f}" if seeds > 1 else f"{mean:5.1f}      "
