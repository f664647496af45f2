"""`igpt probe`: what a frozen model knows of the classes, layer by layer and with few labels."""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.cli.arguments import (
    add_data,
    add_features,
    add_run,
    add_shard,
    number_of_labels,
    refuse_given,
    run_data,
)
from igpt.cli.report import Report
from igpt.cli.tables import probe_text
from igpt.config import Say, UserError

if TYPE_CHECKING:
    from igpt.config import ParallelConfig
    from igpt.probe.linear import FittedProbe
    from igpt.probe.store import SavedProbe
    from igpt.study import (
        AnyTask,
        LinearMethod,
        Method,
        ModelFeatures,
        ProbeMethod,
        Subset,
        Summary,
        Trial,
    )

SEEDS = 5  # where the command line gives none
FEW = 50  # pictures that are too few to tell methods apart
EXAMPLE = "igpt probe runs/digits --labels-per-class 1 4 10 all --baselines"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_data(parser, limit=False)
    parser.add_argument(
        "--layer",
        nargs="+",
        default=["all"],
        metavar="L",
        help="layers to choose from: numbers from 0, a:b (side by side) or all; default all",
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
        help="numbers of labels, or all; default all",
    )
    parser.add_argument("--seeds", type=int, help=f"subsets of each number; default {SEEDS}")
    parser.add_argument(
        "--metric",
        choices=("accuracy", "balanced_accuracy"),
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
    parser.add_argument("--head", choices=("linear", "attention"), default="linear")
    parser.add_argument("--baselines", action="store_true", help="compare on the same labels")
    parser.add_argument(
        "--cnn-minutes",
        type=float,
        metavar="M",
        help="longest training of the baseline network; default: as long as the run was trained",
    )
    parser.add_argument(
        "--augmentation",
        choices=("none", "flip", "cifar", "imagenet"),
        help="of that network's pictures, and of sgd's; imagenet, random crops, for sgd only; "
        "default: the run's own",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default RUN/probe")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.config import ParallelConfig
    from igpt.parallel.processes import processes

    parallel = ParallelConfig(shard=args.shard)
    with processes(parallel):
        return _probe(args, parallel, say)


def _probe(args: argparse.Namespace, parallel: ParallelConfig, say: Say) -> Report:
    """Of several processes, each computes its share of the features, and all repeat the fits."""
    from igpt.disk import require_folder
    from igpt.parallel.processes import on_first, together
    from igpt.pipeline import load
    from igpt.probe.unfinished import UNFINISHED
    from igpt.study import ModelFeatures, ProbeFit, compare, summarise

    _check(args)
    if args.out is None and not args.run.is_dir():
        raise UserError(f"{args.run} is no folder to keep a probe in: give --out FOLDER")
    pipeline, folder = load(args.run, parallel=parallel), _folder(args)
    with together():
        features = ModelFeatures(pipeline, args.layer, args.pool, args.precision)
        features.check()
    on_first(lambda: require_folder(folder))
    road = _streamed if args.solver == "sgd" else _kept
    probe, others, chosen = road(features, args, say)
    trials = compare([probe], probe.task, chosen, say)
    kept = max(trials, key=lambda trial: len(trial.subset.indices))
    assert isinstance(kept.fit, ProbeFit)
    fitted = kept.fit.probe
    saved = _saved(fitted, features, probe.task.train.class_names, run_data(args).config.source)

    def write() -> Report:
        """What there is so far."""
        summaries = summarise(trials)
        values = {**_told(args, features), **_values(fitted, trials, summaries, folder)}
        on_first(lambda: _write(folder, saved, fitted, values, summaries))
        return Report(probe_text(args.metric, fitted, kept.subset, summaries, folder), values)

    report = write()
    if args.solver == "sgd":
        on_first(lambda: (folder / UNFINISHED).unlink(missing_ok=True))
    for other in others:  # some take hours
        trials += compare([other], probe.task, chosen, say)
        report = write()
    return report


def _folder(args: argparse.Namespace) -> Path:
    folder: Path = args.out or args.run / "probe"
    return folder


def _check(args: argparse.Namespace) -> None:
    """UserError for numbers that cannot be, and for options of another solver or head."""
    if args.seeds is not None and args.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {args.seeds}")
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
    refuse_given(args, sgd and attention, "with --solver sgd", "head")
    refuse_given(args, attention, "with --head attention", "pca", "baselines")
    refuse_given(args, not sgd, "without --solver sgd", "epochs", "batch_size", "lr", "resume")
    refuse_given(args, not args.baselines, "without --baselines", "cnn_minutes")
    trains = sgd or args.baselines
    refuse_given(args, not trains, "without --solver sgd or --baselines", "augmentation")


def _streamed(
    features: ModelFeatures, args: argparse.Namespace, say: Say
) -> tuple[ProbeMethod, list[Method], list[Subset]]:
    """The probe by SGD on all labels of a set that memory need not hold, and nothing beside it."""
    from igpt.parallel.meeting import is_restart
    from igpt.parallel.processes import share_of_batch, together
    from igpt.probe.sgd import SGD
    from igpt.probe.unfinished import UNFINISHED
    from igpt.study import StreamedMethod, subsets

    rates = None if args.lr is None else tuple(args.lr)
    given = {"epochs": args.epochs, "batch_size": args.batch_size, "rates": rates}
    config = SGD(
        augmentation=_augmentation(args),
        **{name: value for name, value in given.items() if value is not None},
    )
    share_of_batch(config.batch_size, "--batch-size")  # a mistake is told before all is decoded
    unfinished, resume = _folder(args) / UNFINISHED, args.resume or is_restart()
    with together():
        if unfinished.exists() and not resume:
            raise UserError(
                f"{unfinished} is of a fit that was cut short: --resume it, or remove it"
            )
        task = run_data(args).large_task(features.pipeline.codec)
    _introduce(task, say)
    method = StreamedMethod(features, task, config, args.metric, unfinished, say)
    return method, [], subsets(task, [None], 1)


def _kept(
    features: ModelFeatures, args: argparse.Namespace, say: Say
) -> tuple[ProbeMethod, list[Method], list[Subset]]:
    """The probe on features that are kept, what it is compared with, and the labels they learn."""
    from igpt.device import require_memory
    from igpt.parallel.processes import together
    from igpt.study import AttentionMethod, LinearMethod, needed_pictures, subsets

    with together():
        task = run_data(args).task(features.pipeline.image_size)
    sizes = list(dict.fromkeys(args.labels_per_class))  # each once
    chosen = subsets(task, sizes, args.seeds or SEEDS)
    _introduce(task, say)
    if args.head == "attention":
        attentive = AttentionMethod(features, task, args.metric)
        require_memory(attentive.bytes(chosen), "fewer labels (--labels-per-class)")
        return attentive, [], chosen
    needed = needed_pictures(task, chosen)
    kept = features.bytes(len(needed) + len(task.validation) + len(task.test))
    networks = 2 if args.baselines else 1  # the untrained one's are kept too
    require_memory(networks * kept, "fewer --layer, a coarser --pool, or --solver sgd")
    minutes = _cnn_minutes(args) if args.baselines else None  # before all is computed
    linear = LinearMethod(
        "linear probe", features, task, needed, components=args.pca, metric=args.metric
    )
    return linear, [] if minutes is None else _baselines(features, linear, args, minutes), chosen


def _introduce(task: AnyTask, say: Say) -> None:
    """Say what there is to learn from, after making sure that all processes see the same."""
    from igpt.parallel.processes import require_same

    labels = zlib.crc32(task.train.labels.tobytes())
    require_same("labelled pictures", (labels, len(task.validation), len(task.test)))
    say(
        f"{len(task.train):,} pictures to train on, {len(task.validation):,} to choose with, "
        f"{len(task.test):,} to test on; {task.train.n_classes} classes"
    )
    least = min(len(task.validation), len(task.test))
    if least < FEW:
        say(f"warning: of {least} pictures one is {100 / least:.0f} points of accuracy")


def _augmentation(args: argparse.Namespace) -> str:
    """What is asked for, else what the run's pictures went through."""
    return args.augmentation or run_data(args).config.augmentation


def _cnn_minutes(args: argparse.Namespace) -> float:
    """That the CNN may train: as it is said, or else those of the run."""
    from igpt.checkpoint import RunDirectory
    from igpt.monitor import read_metrics, training_minutes

    run = RunDirectory(args.run)
    if args.cnn_minutes is not None:
        return float(args.cnn_minutes)
    if not run.exists():
        raise UserError(f"{args.run} does not say how long it was trained: give --cnn-minutes")
    return training_minutes(read_metrics(run.metrics), run.recipe().train.batch_size)


def _baselines(
    features: ModelFeatures, linear: LinearMethod, args: argparse.Namespace, minutes: float
) -> list[Method]:
    from igpt.study import CnnMethod, make_baselines

    augmentation = _augmentation(args)
    # Crops need larger pictures than the model's, and those are what the others learn from.
    moved = "none" if augmentation == "imagenet" else augmentation
    cnn = CnnMethod(linear.task, minutes, moved, args.metric)
    return [*make_baselines(features, linear), cnn]


def _told(args: argparse.Namespace, features: ModelFeatures) -> dict[str, Any]:
    """What the numbers are of."""
    return {
        "run": str(args.run),
        "data": run_data(args).config.source,
        "solver": args.solver,
        "head": args.head,
        "pool": features.pool,
        "components": args.pca,
        "metric": args.metric,
    }


def _values(
    fitted: FittedProbe, trials: Sequence[Trial], summaries: Sequence[Summary], folder: Path
) -> dict[str, Any]:
    return {
        "validation_by_layer": fitted.by_layer,
        "layer": fitted.layer,
        "strength": fitted.strength,
        "summaries": [asdict(summary) for summary in summaries],
        "outcomes": [trial.row() for trial in trials],
        "out": str(folder),
    }


def _saved(
    fitted: FittedProbe, features: ModelFeatures, class_names: tuple[str, ...], source: str
) -> SavedProbe:
    """The chosen probe, and what it was made for."""
    from igpt.probe.attention import AttentionHead
    from igpt.probe.store import SavedProbe, mark, source_mark

    pipeline = features.pipeline
    return SavedProbe(
        fitted.probe,
        features.groups()[fitted.layer],
        "flatten" if isinstance(fitted.probe, AttentionHead) else features.pool,
        class_names,
        mark(pipeline.model, pipeline.codec),
        source_mark(source),
    )


def _write(
    folder: Path,
    saved: SavedProbe,
    fitted: FittedProbe,
    values: dict[str, Any],
    summaries: Sequence[Summary],
) -> None:
    """The probe of the most labels, all numbers, and the figures that they make."""
    from igpt.disk import write_atomically, write_json
    from igpt.plots import few_labels_figure, layers_figure
    from igpt.probe.store import RESULTS, save_probe

    save_probe(folder, saved)
    write_json(folder / RESULTS, values)
    metric = values["metric"]
    figures = [folder / "accuracy_by_layer.png", folder / "few_labels.png"]
    for figure in figures:  # an earlier probe's
        figure.unlink(missing_ok=True)
    if len(fitted.by_layer) > 1:
        write_atomically(figures[0], lambda path: layers_figure(fitted.by_layer, path, metric))
    if len({summary.labels_per_class for summary in summaries}) > 1:
        write_atomically(figures[1], lambda path: few_labels_figure(summaries, path, metric))
