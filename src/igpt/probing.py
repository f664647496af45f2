"""A run's probe: fitted, tested, compared with what has no other data, and kept for `predict`.

Several processes each compute their share of the features, and all repeat the fits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from igpt.checkpoint import RunDirectory
from igpt.config import SUBSETS, Say, UserError
from igpt.device import require_memory
from igpt.disk import require_folder, write_json
from igpt.monitor import read_metrics, training_minutes
from igpt.order import need_pixels
from igpt.parallel.meeting import is_restart
from igpt.parallel.processes import on_first, require_same, share_of_batch, together
from igpt.pipeline import Pipeline
from igpt.plots.curves import few_labels_figure, layers_figure, save_figure
from igpt.probe.attention import AttentionHead
from igpt.probe.linear import FittedProbe
from igpt.probe.sgd import MEASURED, SGDConfig
from igpt.probe.store import RESULTS, LearnedFrom, SavedProbe, fingerprint, save_probe
from igpt.probe.unfinished import UNFINISHED
from igpt.run_data import RunData
from igpt.study.methods import (
    AnyTask,
    AttentionMethod,
    CnnMethod,
    LinearMethod,
    Method,
    ModelFeatures,
    StreamedMethod,
    Subset,
    make_baselines,
    needed_pictures,
)
from igpt.study.outcomes import Summary, Trial, subsets, summarise, try_method

FEW = 50  # pictures that are too few to tell methods apart


@dataclass(frozen=True)
class ProbeOptions:
    """What is asked of a probe."""

    layers: Sequence[str] = ("all",)  # to choose from: numbers, a:b (side by side) or all
    pool: str = "mean"
    precision: str = "auto"
    attention: bool = False  # pool by learned queries, in place of `pool`
    components: int | None = None  # principal ones kept; 0: all features; None: the usual number
    sizes: Sequence[int | None] = (None,)  # labels a class; None: all there are
    seeds: int = SUBSETS  # of each size
    metric: str = "accuracy"  # that validation chooses by
    sgd: SGDConfig | None = None  # on features that are not kept; None: L-BFGS on ones that are
    resume: bool = False  # a fit by SGD that was cut short
    baselines: bool = False  # compare on the same labels
    cnn_minutes: float | None = None  # of the CNN among them; None: as long as the run was trained
    augmentation: str = "none"  # of the CNN's pictures: none, flip or cifar


@dataclass(frozen=True)
class ProbeResult:
    """What was found so far."""

    fitted: FittedProbe  # of the most labels: the one that is kept
    subset: Subset  # what it learned from
    summaries: list[Summary]
    values: dict[str, Any]  # all numbers, as they are written


def probe_run(
    run: Path, pipeline: Pipeline, data: RunData, options: ProbeOptions, folder: Path, say: Say
) -> ProbeResult:
    """Fit the probe that is asked for and write it, its numbers and figures into `folder`.

    The probe is written before what it is compared with is trained, and the numbers after each.
    Raises UserError for layers, pools, labels or sizes that cannot be.
    """
    with together():
        features = ModelFeatures(pipeline, options.layers, options.pool, options.precision)
    on_first(lambda: require_folder(folder))
    if (folder / RESULTS).exists():
        say(f"the probe in {folder} will be replaced (--out keeps it)")
    if options.sgd is None:
        probe, others, chosen = _kept(run, features, data, options, say)
    else:
        probe, others, chosen = _streamed(features, data, options, options.sgd, folder, say)
    learned = data.learned()
    trials = try_method(probe, chosen, say)
    kept = max(trials, key=lambda trial: len(trial.subset.indices))
    fitted = kept.fit.probe
    assert fitted is not None
    saved = _saved(fitted, features, probe.task.train.class_names, learned)
    told = {
        "run": str(run),
        "data": data.config.source,
        "solver": "lbfgs" if options.sgd is None else "sgd",
        "head": "attention" if options.attention else "linear",
        "pool": features.pool,
        "components": options.components,
        "metric": options.metric,
    }

    def write() -> ProbeResult:
        summaries = summarise(trials)
        values = {**told, **_values(fitted, trials, summaries, folder)}
        on_first(lambda: _write(folder, saved, fitted, values, summaries))
        return ProbeResult(fitted, kept.subset, summaries, values)

    found = write()
    if options.sgd is not None:
        on_first(lambda: (folder / UNFINISHED).unlink(missing_ok=True))
    for other in others:  # some take hours
        trials += try_method(other, chosen, say)
        del other  # and its features, before the next computes its own
        found = write()
    return found


def _streamed(
    features: ModelFeatures,
    data: RunData,
    options: ProbeOptions,
    config: SGDConfig,
    folder: Path,
    say: Say,
) -> tuple[Method, Iterable[Method], list[Subset]]:
    """The probe by SGD on all labels of a set that memory need not hold, and nothing beside it."""
    share_of_batch(config.batch_size, "--batch-size")  # a mistake is told before all is decoded
    unfinished, resume = folder / UNFINISHED, options.resume or is_restart()
    with together():
        if unfinished.exists() and not resume:
            raise UserError(
                f"{unfinished} is of a fit that was cut short: --resume it, or remove it"
            )
        task = data.large_task(features.pipeline.codec)
    sampled = features.bytes(min(MEASURED, len(task.train)))
    require_memory(sampled, "fewer --layer, or a coarser --pool")
    _introduce(task, say)
    method = StreamedMethod(features, task, config, options.metric, unfinished, say)
    return method, [], subsets(task, [None], 1)


def _kept(
    run: Path, features: ModelFeatures, data: RunData, options: ProbeOptions, say: Say
) -> tuple[Method, Iterable[Method], list[Subset]]:
    """The probe on features that are kept, what it is compared with, and the labels they learn."""
    with together():
        task = data.task(features.pipeline.image_size)
    sizes = list(dict.fromkeys(options.sizes))  # each once
    chosen = subsets(task, sizes, options.seeds)
    _introduce(task, say)
    if options.attention:
        attentive = AttentionMethod(features, task, options.metric)
        require_memory(attentive.bytes(chosen), "fewer labels (--labels-per-class)")
        return attentive, [], chosen
    needed = needed_pictures(task, chosen)
    kept = features.bytes(len(needed) + len(task.validation) + len(task.test))
    networks = 2 if options.baselines else 1  # the untrained one's are kept too
    require_memory(networks * kept, "fewer --layer, a coarser --pool, or --solver sgd")
    minutes = None
    if options.baselines:  # mistakes are told before all is computed
        need_pixels(task.train.images)
        minutes = _cnn_minutes(run, options)
    linear = LinearMethod(
        "linear probe", features, task, needed, components=options.components, metric=options.metric
    )
    if minutes is None:
        return linear, [], chosen
    cnn = CnnMethod(task, minutes, options.augmentation, options.metric)
    return linear, chain(make_baselines(features, linear), [cnn]), chosen


def _introduce(task: AnyTask, say: Say) -> None:
    """Say what there is to learn from, after making sure that all processes see the same."""
    labels = zlib.crc32(task.train.labels.tobytes())
    require_same("labelled pictures", (labels, len(task.validation), len(task.test)))
    say(
        f"{len(task.train):,} pictures to train on, {len(task.validation):,} to choose with, "
        f"{len(task.test):,} to test on; {task.train.n_classes} classes"
    )
    least = min(len(task.validation), len(task.test))
    if least < FEW:
        say(f"warning: of {least} pictures one is {100 / least:.0f} points of accuracy")


def _cnn_minutes(run: Path, options: ProbeOptions) -> float:
    """That the CNN may train: as it is said, or else those of the run."""
    if options.cnn_minutes is not None:
        return options.cnn_minutes
    directory = RunDirectory(run)
    minutes = 0.0
    if directory.exists():
        batch_size = directory.recipe().train.batch_size
        minutes = training_minutes(read_metrics(directory.metrics), batch_size)
    if not minutes:
        raise UserError(f"{run} does not say how long it was trained: give --cnn-minutes")
    return minutes


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
    fitted: FittedProbe, features: ModelFeatures, class_names: tuple[str, ...], learned: LearnedFrom
) -> SavedProbe:
    """The chosen probe, and what it was made for."""
    pipeline = features.pipeline
    return SavedProbe(
        fitted.probe,
        features.extractor.groups[fitted.layer],
        "flatten" if isinstance(fitted.probe, AttentionHead) else features.pool,
        class_names,
        fingerprint(pipeline.model, pipeline.codec),
        learned,
    )


def _write(
    folder: Path,
    saved: SavedProbe,
    fitted: FittedProbe,
    values: dict[str, Any],
    summaries: Sequence[Summary],
) -> None:
    """The probe of the most labels, all numbers, and the figures that they make."""
    save_probe(folder, saved)
    write_json(folder / RESULTS, values)
    metric, by_layer, by_labels = values["metric"], None, None
    if len(fitted.by_layer) > 1:
        by_layer = layers_figure(fitted.by_layer, metric)
    if len({summary.labels_per_class for summary in summaries}) > 1:
        by_labels = few_labels_figure(summaries, metric)
    for name, figure in (("accuracy_by_layer.png", by_layer), ("few_labels.png", by_labels)):
        if figure is None:
            (folder / name).unlink(missing_ok=True)  # an earlier probe's
        else:
            save_figure(figure, folder / name)
