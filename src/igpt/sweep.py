"""Runs that differ in a few fields of their recipe, and what each cost and reached.

How much smaller pictures and fewer colours lose is the paper's own question (section 3.2): a
context of 32x32 of 512 colours stands for 224x224 of 2^24. A sweep is a folder with a run for each
combination and `sweep.json`, which is written anew after each, so a killed sweep goes on.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch

from igpt.checkpoint import RunDirectory
from igpt.config import SUBSETS, Diverged, Recipe, Say, UserError
from igpt.data.decode import encode_all
from igpt.data.labels import few_labels, open_task
from igpt.data.sources import is_shards, open_data
from igpt.data.splits import pictures_to_test, task_training_splits
from igpt.disk import read_json, write_json
from igpt.monitor import read_metrics, training_minutes
from igpt.order import permutation
from igpt.pipeline import Pipeline, load
from igpt.plan import n_parameters, training_flops
from igpt.pretrain import pretrain
from igpt.recipes import flat_fields, load_recipe
from igpt.run import settle_recipe
from igpt.study.methods import LinearMethod, ModelFeatures, needed_pictures
from igpt.study.outcomes import subsets, summarise, try_method
from igpt.train import Outcome

NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*]')  # of files, on one system or another
ALIASES = {"model": "model.preset"}  # other fields go by the last part of their name


@dataclass(frozen=True)
class Point:
    """A combination of the grid."""

    name: str  # "image_size=8,colors=16", also its folder's
    recipe: Recipe
    run: RunDirectory


@dataclass(frozen=True)
class Result:
    """What a run cost and reached; likelihoods of a BERT model are of its hidden pixels."""

    name: str
    parameters: int
    # Of training's matrix products, as 6 N + 12 L d T a token counts them (Chowdhery et al., PaLM,
    # 2022, appendix B; 6 N after Kaplan et al., 2020); embeddings and validation are not in it.
    flops: float
    minutes: float  # of its steps
    val_nats_per_pixel: float
    # A pixel of a small palette or of a coarse picture says less than another: whole pictures are
    # compared, and only those of one size.
    val_nats_per_picture: float
    test_nats_per_pixel: float
    test_nats_per_picture: float
    # Of a linear probe, the mean over subsets of labels; None without labels. Choose by validation.
    val_accuracy: float | None
    accuracy: float | None  # on test
    accuracy_deviation: float | None  # standard, over the subsets
    labels_per_class: int | None  # that the probe learned from; None: all


@dataclass(frozen=True)
class SweepResult:
    """The results, in the grid's order, and the run that a signal stopped."""

    results: list[Result]
    diverged: list[str]  # names of points whose training did
    stopped: tuple[Point, Outcome] | None = None


# --- the grid ------------------------------------------------------------------------------------


def make_points(recipe: str, grid: Sequence[str], changes: Sequence[str], out: Path) -> list[Point]:
    """Every combination of `grid`, words like "image_size=8,14", as a recipe and a run in `out`.

    `changes`, like "train.steps=100", hold for all. Raises UserError that names the field at fault
    before anything is trained.
    """
    values = _parse(grid)
    fields = {name: _field(name) for name in values}
    taken = [change.partition("=")[0] for change in changes]
    for name, field in fields.items():
        if field in taken:
            raise UserError(f"grid: '{name}' is {field}, which is given already")
        taken.append(field)
    points: list[Point] = []
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        name = NOT_IN_NAMES.sub("_", ",".join(f"{key}={value}" for key, value in chosen.items()))
        if any(name == point.name for point in points):
            raise UserError(f"grid: two of its points have the name {name}")
        words = [*changes, *(f"{fields[key]}={value}" for key, value in chosen.items())]
        points.append(Point(name, load_recipe(recipe, words), RunDirectory(out / name)))
        _check(points[-1])
    return points


def _parse(grid: Sequence[str]) -> dict[str, list[str]]:
    """The values of each name; UserError for none, and for one that comes again."""
    values: dict[str, list[str]] = {}
    for word in grid:
        name, _, listed = word.partition("=")
        several = listed.split(",")
        if "" in (name, *several):
            raise UserError(f"grid '{word}': expected a field and values, like image_size=8,14,28")
        if name in values or len(set(several)) < len(several):
            raise UserError(f"grid '{word}': a field or a value is given twice")
        values[name] = several
    if not values:
        raise UserError("the grid is empty: expected fields and values, like image_size=8,14,28")
    return values


def _field(name: str) -> str:
    """The dotted field of a recipe that a name of the grid means."""
    # How a run is divided over processes changes nothing that is measured.
    fields = [f for f in flat_fields(Recipe()) if not f.startswith("parallel.")]
    found = [f for f in fields if f == ALIASES.get(name, name) or f.endswith(f".{name}")]
    if len(found) != 1:
        expected = ", ".join(found or fields)
        raise UserError(f"grid: '{name}' is no one field of a recipe, expected one of: {expected}")
    return found[0]


def _check(point: Point) -> None:
    """Raise UserError for what cannot be trained, and for a folder that holds another run."""
    recipe = point.recipe
    permutation(recipe.order, recipe.data.image_size)
    if recipe.data.streaming and is_shards(recipe.data.source):
        raise UserError("a sweep measures on pictures that it can open whole: not on shards")
    settle_recipe(recipe, point.run, resume=True, command="pretrain")


# --- the runs ------------------------------------------------------------------------------------


def sweep(
    points: Sequence[Point], out: Path, labels_per_class: int | None, say: Say
) -> SweepResult:
    """Train and measure every point that `out`/sweep.json lacks; a signal ends it early.

    Runs go on where they are; one that diverges is left out. Raises UserError when there is nothing
    to test on or a class has too few labels, and what `pretrain` raises.
    """
    _require_data(points, labels_per_class)
    path = out / "sweep.json"
    known, swept = _read(path), SweepResult([], [])
    for number, point in enumerate(points, 1):
        say(f"[{number}/{len(points)}] {point.name}")
        result = known.get(point.name)
        if not (result and point.run.exists() and result.labels_per_class == labels_per_class):
            if result:  # of a run that is gone, or of other labels
                _replace(path, point.name, None)
            if point.recipe.train.compile:
                torch.compiler.reset()  # what it made for another shape would be reused
            resume = point.run.exists()
            try:
                outcome = pretrain(point.recipe, point.run.path, resume=resume, say=say).outcome
            except Diverged as error:
                say(f"warning: {point.name} is left out: {error}")
                swept.diverged.append(point.name)
                continue
            if outcome.signal is not None:
                return replace(swept, stopped=(point, outcome))
            result = measure(point, outcome, labels_per_class, say)
            _replace(path, point.name, result)
        swept.results.append(result)
    return swept


def measure(point: Point, outcome: Outcome, labels_per_class: int | None, say: Say) -> Result:
    """What the finished run of `point` cost and reached."""
    recipe, pipeline = point.run.recipe(), load(point.run.path)
    data, config = recipe.data, pipeline.model.config
    test = pictures_to_test(open_data(data), data, recipe.split_seed)
    assert outcome.best is not None  # the last step validates
    likelihood = pipeline.likelihood(encode_all(test, pipeline.codec, pipeline.transform).images)
    return Result(
        point.name,
        parameters=n_parameters(config),
        flops=float(training_flops(config)) * outcome.step * recipe.train.batch_size,
        minutes=training_minutes(read_metrics(point.run.metrics), recipe.train.batch_size),
        val_nats_per_pixel=outcome.best,
        val_nats_per_picture=outcome.best * likelihood.n_pixels,
        test_nats_per_pixel=likelihood.nats_per_pixel,
        test_nats_per_picture=likelihood.nats_per_picture,
        **_accuracies(pipeline, recipe, labels_per_class, say),
        labels_per_class=labels_per_class,
    )


def _accuracies(
    pipeline: Pipeline, recipe: Recipe, labels_per_class: int | None, say: Say
) -> dict[str, float | None]:
    """`Result`'s accuracies of a probe, at the layers that validation chooses."""
    data = recipe.data
    try:
        task = open_task(open_data(recipe.data), data, pipeline.image_size, recipe.split_seed)
        chosen = subsets(task, [labels_per_class], SUBSETS)
    except UserError as error:
        say(f"no accuracy: {error}")
        return dict.fromkeys(("val_accuracy", "accuracy", "accuracy_deviation"))
    features = ModelFeatures(pipeline, ["all"], "mean", recipe.train.precision)
    needed = needed_pictures(task, chosen)
    linear = LinearMethod(
        "linear probe", features, task, needed, components=None, metric="accuracy"
    )
    trials = try_method(linear, chosen, say)
    (summary,) = summarise(trials)
    mean, deviation = summary.accuracy
    validation = statistics.mean(trial.fit.validation for trial in trials)
    return {"val_accuracy": validation, "accuracy": mean, "accuracy_deviation": deviation}


def _require_data(points: Sequence[Point], per_class: int | None) -> None:
    """UserError for a source that cannot be opened or tested, and for too few labels."""
    sets = {replace(point.recipe.data, image_size=1): point.recipe for point in points}
    for recipe in sets.values():
        source = open_data(recipe.data)
        pictures_to_test(source, recipe.data, recipe.split_seed)
        if per_class is None:
            continue
        train, _ = task_training_splits(source, recipe.data, recipe.split_seed)
        if train.labels is None:
            raise UserError(f"{recipe.data.source} has no labels to take {per_class} a class of")
        labels = train.labels[train.labels >= 0]
        few_labels(labels, per_class, seed=0, names=train.class_names or ())


def _read(path: Path) -> dict[str, Result]:
    """Results by name; UserError when the file holds something else."""
    if not path.is_file():
        return {}
    try:
        return {row["name"]: Result(**row) for row in read_json(path)["runs"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold a sweep: {error}") from error


def _replace(path: Path, name: str, result: Result | None) -> None:
    """Write one result, or its absence, beside those of other sweeps that write the same file."""
    results = {**_read(path), name: result}
    write_json(path, {"runs": [asdict(result) for result in results.values() if result]})
