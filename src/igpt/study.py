"""Studies of what a model knows: its probe at every layer, and with few labels, beside baselines.

All methods are given the same labelled pictures, and the same validation pictures to choose with;
test is looked at once, by what was chosen.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from igpt.baselines import fit_neighbours, predict_cnn, train_cnn
from igpt.config import Recipe, Say, TrainConfig, UserError
from igpt.data import LargeTask, Task, few_labels
from igpt.device import compute_dtype
from igpt.order import Encoded, need_pixels
from igpt.pipeline import Pipeline
from igpt.pretrain import new_model
from igpt.probe.attention import fit_attention
from igpt.probe.features import Extractor, Features, make_pool, parse_layers
from igpt.probe.linear import (
    COMPONENTS,
    Basis,
    FittedProbe,
    LayerData,
    fit_probe,
    score,
)
from igpt.probe.sgd import SGD, fit_sgd, predict_all
from igpt.rng import numpy_rng
from igpt.types import Pixels

Indices = npt.NDArray[np.int64]
AnyTask = Task | LargeTask

# Pictures whose features, without their labels, give the mean, the scale and the components.
UNLABELLED = 5_000
PIXEL_COMPONENTS = 64  # of the baseline on principal components of the pixels


@dataclass(frozen=True)
class Outcome:
    """What a method reached with some labels."""

    method: str
    labels_per_class: int | None  # None: all of them
    seed: int
    layer: str  # that validation chose; empty where there is no choice
    validation: float  # the metric that chose
    accuracy: float  # on test, looked at once
    balanced_accuracy: float


@dataclass(frozen=True, eq=False)
class Subset:
    """Training pictures whose labels may be used."""

    per_class: int | None  # None: all there are
    seed: int
    indices: Indices  # sorted


class Method(Protocol):
    """Something that learns from the labels of a subset."""

    name: str

    def fit(self, subset: Subset) -> tuple[str, float, Indices]:
        """Layer and validation metric of what was chosen, and its classes for the test pictures."""
        ...


class ProbeMethod(Method, Protocol):
    """A method that leaves a probe for every subset."""

    metric: str
    fitted: dict[Subset, FittedProbe]

    @property
    def task(self) -> AnyTask: ...


# Pictures [N, S, S, 3], or encoded ones, to features, one array [N, F] for each layer.
Representation = Callable[[Pixels | Encoded], dict[str, Features]]


@dataclass(frozen=True)
class ModelFeatures:
    """A model's features as a representation.

    `layers` are words: a layer, `all` of them, or `a:b` side by side.
    """

    pipeline: Pipeline
    layers: Sequence[str]
    pool: str
    precision: str

    def check(self) -> None:
        """Raise UserError for layers and pools that the model does not have."""
        self.groups()
        make_pool(self.pool, self.pipeline.codec)

    def groups(self) -> dict[str, tuple[int, ...]]:
        """The layers that stand side by side, by the name of each choice."""
        n_layer = self.pipeline.model.config.n_layer
        parsed = {word: parse_layers(word, n_layer) for word in self.layers}
        every = {str(layer): (layer,) for layer in parsed.pop("all", ())}
        return {**every, **parsed}

    @property
    def extractor(self) -> Extractor:
        """What computes them, a few pictures at a time."""
        model, codec = self.pipeline.model, self.pipeline.codec
        dtype = compute_dtype(self.precision, model.wte.device)
        return Extractor(model, codec, make_pool(self.pool, codec), self.groups(), dtype)

    def __call__(self, images: Pixels | Encoded) -> dict[str, Features]:
        parts = list(self.extractor.every(self.pipeline.codec.raster_tokens(images)))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.groups()}


def pixel_features(images: Pixels | Encoded) -> dict[str, Features]:
    """The pixels themselves, 0 to 1; one channel of grey pictures; UserError for encoded ones."""
    pixels = need_pixels(images)
    grey = bool((pixels == pixels[..., :1]).all())
    channels = pixels[..., :1] if grey else pixels
    return {"": channels.reshape(len(images), -1).astype(np.float32) / np.float32(255)}


def untrained(pipeline: Pipeline, seed: int) -> Pipeline:
    """The same network with the weights that training began with, of another seed."""
    # Split in float32, as the pipeline is: what products are computed in is autocast's to say.
    train = TrainConfig(seed=seed, precision="float32")
    recipe = Recipe(train=train, parallel=pipeline.parallel)
    return Pipeline(new_model(pipeline.model.config, recipe), pipeline.codec)


class LinearMethod:
    """Logistic regression on a representation, at the layer and strength that validation chooses.

    Features are computed once, of the pictures `needed` only; those of `unlabelled` ones give the
    mean, the scale and the components. `components`: principal ones kept, 0 for all features, None
    for as many as there are unless features outnumber labels.
    """

    def __init__(
        self,
        name: str,
        represent: Representation,
        task: Task,
        needed: Indices,
        *,
        components: int | None,
        metric: str,
    ) -> None:
        self.name, self.task, self.metric, self.components = name, task, metric, components
        self.needed = needed
        self.train = represent(task.train.images[needed])
        self.validation = represent(task.validation.images)
        self.test = represent(task.test.images)
        self.fitted: dict[Subset, FittedProbe] = {}
        self._bases: dict[tuple[str, int], Basis] = {}

    def fit(self, subset: Subset) -> tuple[str, float, Indices]:
        layers = {name: self.layer_data(name, subset.indices) for name in self.train}
        train, validation = self.task.train, self.task.validation
        labels = train.labels[subset.indices]
        chosen = fit_probe(layers, labels, validation.labels, train.n_classes, self.metric)
        self.fitted[subset] = chosen
        return chosen.layer, chosen.validation, chosen.probe.predict(self.test[chosen.layer])

    def layer_data(self, layer: str, indices: Indices) -> LayerData:
        """A layer as seen by a probe that has the labels at `indices`."""
        rows = np.searchsorted(self.needed, indices)
        features = self.train[layer]
        n_components = self.components
        if n_components is None:
            n_components = COMPONENTS if features.shape[1] > len(indices) else 0
        key = (layer, n_components)
        if key not in self._bases:
            known = np.searchsorted(self.needed, unlabelled(self.task))
            self._bases[key] = Basis.fit(features[known], n_components)
        return LayerData(features[rows], self.validation[layer], self._bases[key])


class StreamedMethod:
    """A linear probe by SGD on pictures and features that are not kept: for large sets."""

    def __init__(
        self, features: ModelFeatures, task: LargeTask, config: SGD, metric: str, say: Say
    ) -> None:
        self.name, self.task, self.metric, self.config = "linear probe", task, metric, config
        self.say, self.extractor = say, features.extractor
        self.fitted: dict[Subset, FittedProbe] = {}

    def fit(self, subset: Subset) -> tuple[str, float, Indices]:
        chosen = fit_sgd(
            self.extractor,
            self.task.train.select(subset.indices),
            self.task.validation,
            metric=self.metric,
            config=self.config,
            say=self.say,
        )
        self.fitted[subset] = chosen
        predicted = predict_all(self.extractor, chosen, self.task.test.images)
        return chosen.layer, chosen.validation, predicted


class AttentionMethod:
    """An attentive probe on single layers' positions; the layer is chosen by validation.

    Positions take T times the room of their mean, so one layer at a time is held.
    """

    def __init__(self, features: ModelFeatures, task: Task, metric: str) -> None:
        self.name, self.task, self.metric = "attentive probe", task, metric
        self.features = replace(features, pool="flatten")
        self.fitted: dict[Subset, FittedProbe] = {}
        for name, group in features.groups().items():
            if len(group) > 1:
                raise UserError(f"layer {name}: an attentive probe takes single layers")

    def fit(self, subset: Subset) -> tuple[str, float, Indices]:
        choices = [self._fit_layer(layer, subset) for layer in self.features.groups()]
        best = max(choices, key=lambda choice: choice.validation)
        by_layer = {choice.layer: choice.validation for choice in choices}
        self.fitted[subset] = replace(best, by_layer=by_layer)
        test = self._positions(best.layer, self.task.test.images)
        return best.layer, best.validation, best.probe.predict(test)

    def _fit_layer(self, layer: str, subset: Subset) -> FittedProbe:
        train, validation = self.task.train.select(subset.indices), self.task.validation
        head, value = fit_attention(
            self._positions(layer, train.images),
            train.labels,
            self._positions(layer, validation.images),
            validation.labels,
            width=self.features.pipeline.model.config.n_embd,
            n_classes=train.n_classes,
            metric=self.metric,
            seed=subset.seed,
        )
        return FittedProbe(head, layer, None, value, {})

    def _positions(self, layer: str, images: Pixels | Encoded) -> Features:
        return replace(self.features, layers=[layer])(images)[layer]


class NeighbourMethod:
    """Nearest neighbours on a linear method's features, at the layer that validation chooses."""

    def __init__(self, linear: LinearMethod) -> None:
        self.name, self.linear = "nearest neighbours on the features", linear
        self.worth = partial(score, linear.metric)

    def fit(self, subset: Subset) -> tuple[str, float, Indices]:
        task = self.linear.task
        labels, best = task.train.labels[subset.indices], None
        for layer in self.linear.train:
            data = self.linear.layer_data(layer, subset.indices)
            x, validation, worth = data.basis(data.validation), task.validation.labels, self.worth
            neighbours = fit_neighbours(data.basis(data.train), labels, x, validation, worth)
            value = worth(validation, neighbours.predict(x))
            if best is None or value > best[1]:
                best = layer, value, neighbours, data.basis
        assert best is not None
        layer, value, neighbours, basis = best
        return layer, value, neighbours.predict(basis(self.linear.test[layer]))


class CnnMethod:
    """A small residual network trained from scratch on the labelled pictures."""

    def __init__(self, task: Task, minutes: float, augmentation: str, metric: str) -> None:
        self.name, self.task, self.minutes = "residual CNN from scratch", task, minutes
        self.augmentation, self.metric = augmentation, metric

    def fit(self, subset: Subset) -> tuple[str, float, Indices]:
        train, validation = self.task.train.select(subset.indices), self.task.validation
        cnn = train_cnn(
            train.pixels,
            train.labels,
            validation.pixels,
            validation.labels,
            train.n_classes,
            minutes=self.minutes,
            augmentation=self.augmentation,
            worth=partial(score, self.metric),
            seed=subset.seed,
        )
        value = score(self.metric, validation.labels, predict_cnn(cnn, validation.pixels))
        return "", value, predict_cnn(cnn, self.task.test.pixels)


def subsets(task: AnyTask, sizes: Sequence[int | None], seeds: int) -> list[Subset]:
    """Subsets of every size with every seed; size None is all labels, for which one seed is enough.

    Raises UserError when a class has too few.
    """
    every = np.arange(len(task.train))
    return [
        Subset(size, seed, every if size is None else few_labels(task.train.labels, size, seed))
        for size in sizes
        for seed in range(1 if size is None else seeds)
    ]


def unlabelled(task: Task) -> Indices:
    """Training pictures whose features are used without their labels; the same for all subsets."""
    return np.sort(numpy_rng(0, "unlabelled").permutation(len(task.train))[:UNLABELLED])


def needed_pictures(task: Task, chosen: Sequence[Subset]) -> Indices:
    """All training pictures of the subsets, and those used without their labels; sorted."""
    return np.unique(np.concatenate([unlabelled(task), *(subset.indices for subset in chosen)]))


def make_baselines(features: ModelFeatures, linear: LinearMethod) -> list[Method]:
    """What the probe `linear` on `features` is compared with, on the same labels.

    Pixels, their principal components, the features of the untrained network, and the nearest
    neighbours on the trained one's.
    """
    task, needed, metric = linear.task, linear.needed, linear.metric
    make = partial(LinearMethod, task=task, needed=needed, metric=metric)
    same = replace(features, pipeline=untrained(features.pipeline, seed=1))
    return [
        make("logistic regression on pixels", pixel_features, components=0),
        make(
            f"logistic regression on {PIXEL_COMPONENTS} components",
            pixel_features,
            components=PIXEL_COMPONENTS,
        ),
        make("probe of the untrained network", same, components=linear.components),
        NeighbourMethod(linear),
    ]


def compare(
    methods: Sequence[Method], task: AnyTask, chosen: Sequence[Subset], say: Say
) -> list[Outcome]:
    """Every method with every subset of labels."""
    outcomes = []
    for method in methods:
        for subset in chosen:
            layer, validation, predicted = method.fit(subset)
            accuracy, balanced = (
                score(metric, task.test.labels, predicted)
                for metric in ("accuracy", "balanced_accuracy")
            )
            size, seed = subset.per_class, subset.seed
            outcomes.append(Outcome(method.name, size, seed, layer, validation, accuracy, balanced))
            labels = "all labels" if size is None else f"{size} labels a class, seed {seed}"
            say(f"{method.name}, {labels}: {100 * accuracy:.1f} % on test")
    return outcomes


@dataclass(frozen=True)
class Summary:
    """A method at one number of labels, over the seeds."""

    method: str
    labels_per_class: int | None
    seeds: int
    accuracy: tuple[float, float]  # mean and standard deviation
    balanced_accuracy: tuple[float, float]


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """A row for each method and number of labels, in the order of their first appearance."""
    groups: dict[tuple[str, int | None], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.method, outcome.labels_per_class), []).append(outcome)
    return [
        Summary(
            method,
            size,
            len(group),
            _spread([outcome.accuracy for outcome in group]),
            _spread([outcome.balanced_accuracy for outcome in group]),
        )
        for (method, size), group in groups.items()
    ]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
