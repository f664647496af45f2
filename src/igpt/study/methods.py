"""Methods that learn from a subset of the labels: probes of a model, and baselines."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from igpt.baselines.cnn import LEAST_STEPS, predict_cnn, train_cnn
from igpt.baselines.neighbours import fit_neighbours
from igpt.config import Recipe, Say, TrainConfig, UserError
from igpt.data.labels import LargeTask, LazyLabelled, Task, unlabelled
from igpt.order import Encoded, need_pixels
from igpt.pipeline import Pipeline
from igpt.probe.attention import fit_attention
from igpt.probe.features import Extractor, Features, make_pool, parse_layers, pool_width
from igpt.probe.linear import (
    FeatureTransform,
    FittedProbe,
    LayerData,
    fit_probe,
    metric_value,
    usual_components,
)
from igpt.probe.sgd import SGDConfig, fit_sgd, predict_all
from igpt.probe.store import fingerprint
from igpt.probe.unfinished import Unfinished
from igpt.run import new_model
from igpt.types import Labels, Pixels

Indices = npt.NDArray[np.int64]
AnyTask = Task | LargeTask

PIXEL_COMPONENTS = 64  # components that the baseline on the pixels' principal components keeps


@dataclass(frozen=True, eq=False)
class Subset:
    """Training pictures whose labels may be used."""

    per_class: int | None  # None: all there are
    seed: int
    indices: Indices  # sorted


@dataclass(frozen=True, eq=False)
class Fit:
    """What a method learned from a subset."""

    predicted: Labels  # [N], of the test pictures
    validation: float  # value, on validation pictures, of the metric that chooses
    layer: str = ""  # the layer that validation chose, where there is a choice
    probe: FittedProbe | None = None  # of a method that makes one to keep


class Method(Protocol):
    """Something that learns from the labels of a subset of its task's training pictures."""

    name: str

    @property
    def task(self) -> AnyTask: ...

    def fit(self, subset: Subset) -> Fit: ...


# Pictures [N, S, S, 3], or encoded ones, to features, one array [N, F] for each layer.
Representation = Callable[[Pixels | Encoded], dict[str, Features]]


@dataclass(eq=False)
class ModelFeatures:
    """A model's features as a representation.

    `layers` are words: a layer's number, `all` of them one by one, or `a:b` side by side. Raises
    UserError for layers and pools that the model does not have.
    """

    pipeline: Pipeline
    layers: Sequence[str]
    pool: str
    precision: str
    extractor: Extractor = field(init=False)  # what computes them

    def __post_init__(self) -> None:
        model, codec = self.pipeline.model, self.pipeline.codec
        groups = {word: parse_layers(word, model.config.n_layer) for word in self.layers}
        every = {str(layer): (layer,) for layer in groups.pop("all", ())}
        pool, dtype = make_pool(self.pool, codec), self.pipeline.dtype(self.precision)
        self.extractor = Extractor(model, codec, pool, {**every, **groups}, dtype)

    def bytes(self, n: int) -> int:
        """Bytes that the features of n pictures take."""
        extractor = self.extractor
        layers = sum(len(group) for group in extractor.groups.values())
        width = pool_width(extractor.pool, extractor.model.config)
        return n * layers * width * np.dtype(np.float32).itemsize

    def __call__(self, images: Pixels | Encoded) -> dict[str, Features]:
        return self.extractor.whole(images)


def pixel_features(images: Pixels | Encoded, *, grey: bool) -> dict[str, Features]:
    """The pixels themselves, 0 to 1; one channel of `grey` ones; UserError for encoded pictures."""
    pixels = need_pixels(images)
    channels = pixels[..., :1] if grey else pixels
    return {"": channels.reshape(len(images), -1).astype(np.float32) / np.float32(255)}


def untrained(pipeline: Pipeline, seed: int) -> Pipeline:
    """The same network with initial weights as training begins with, drawn from `seed`."""
    # Split in float32, as the pipeline is: autocast chooses the type of the products.
    train = TrainConfig(seed=seed, precision="float32")
    recipe = Recipe(train=train, parallel=pipeline.parallel)
    device = pipeline.model.wte.device
    return Pipeline(new_model(pipeline.model.config, recipe), pipeline.codec, device=device)


class LinearMethod:
    """Logistic regression on a representation, at the layer and strength that validation chooses.

    Features are computed once, and only of the training pictures at `needed`; those of the
    `unlabelled` pictures give the mean, the scale and the components. `components` is the number of
    principal components kept; 0: all features; None: all, unless features outnumber labels.
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
        self._transforms: dict[tuple[str, int], FeatureTransform] = {}

    def fit(self, subset: Subset) -> Fit:
        layers = ((name, self.layer_data(name, subset.indices)) for name in self.train)
        train, validation = self.task.train, self.task.validation
        labels = train.labels[subset.indices]
        chosen = fit_probe(layers, labels, validation.labels, train.n_classes, self.metric)
        predicted = chosen.probe.predict(self.test[chosen.layer])
        return Fit(predicted, chosen.validation, chosen.layer, chosen)

    def layer_data(self, layer: str, indices: Indices) -> LayerData:
        """A layer as seen by a probe that has the labels at `indices`."""
        rows = np.searchsorted(self.needed, indices)
        features = self.train[layer]
        n_components = self.components
        if n_components is None:
            n_components = usual_components(features.shape[1], len(indices))
        key = (layer, n_components)
        if key not in self._transforms:
            known = np.searchsorted(self.needed, unlabelled(len(self.task.train)))
            self._transforms[key] = FeatureTransform.fit(features[known], n_components)
        return LayerData(features[rows], self.validation[layer], self._transforms[key])


def _checksum(part: LazyLabelled) -> int:
    """What tells these pictures, by their names, and their labels from others."""
    pictures = part.pictures
    names = "\n".join(pictures.name(i) for i in range(len(pictures)))
    return zlib.crc32(names.encode(), zlib.crc32(part.labels.tobytes()))


class StreamedMethod:
    """A linear probe by SGD on pictures and features that are not kept: for large sets.

    The unfinished fit is saved in the file `unfinished`, from which it can go on.
    """

    def __init__(
        self,
        features: ModelFeatures,
        task: LargeTask,
        config: SGDConfig,
        metric: str,
        unfinished: Path,
        say: Say,
    ) -> None:
        self.name, self.task, self.metric, self.config = "linear probe", task, metric, config
        self.say, self.extractor = say, features.extractor
        pipeline = features.pipeline
        about = {
            "options": asdict(config),
            "layers": self.extractor.groups,
            "pool": features.pool,
            "precision": str(self.extractor.dtype),
            "labelled pictures": _checksum(task.train),
            "model": asdict(fingerprint(pipeline.model, pipeline.codec)),
        }
        self.unfinished = Unfinished(unfinished, json.dumps(about))

    def fit(self, subset: Subset) -> Fit:
        chosen = fit_sgd(
            self.extractor,
            self.task.train.select(subset.indices),
            self.task.validation,
            metric=self.metric,
            config=self.config,
            unfinished=self.unfinished,
            say=self.say,
        )
        predicted = predict_all(self.extractor, chosen, self.task.test.images)
        return Fit(predicted, chosen.validation, chosen.layer, chosen)


class AttentionMethod:
    """An attentive probe on single layers' positions; the layer is chosen by validation.

    The features of all T positions take T times the memory of their mean, so only one layer is held
    at a time.
    """

    def __init__(self, features: ModelFeatures, task: Task, metric: str) -> None:
        self.name, self.task, self.metric = "attentive probe", task, metric
        self.features = replace(features, pool="flatten")
        for name, group in features.extractor.groups.items():
            if len(group) > 1:
                raise UserError(f"layer {name}: an attentive probe takes single layers")

    def bytes(self, chosen: Sequence[Subset]) -> int:
        """Bytes of all features that are held at once: those of one layer at all positions."""
        task, one = self.task, replace(self.features, layers=["0"])
        learned = max(len(subset.indices) for subset in chosen) + len(task.validation)
        return one.bytes(max(learned, len(task.test)))

    def fit(self, subset: Subset) -> Fit:
        choices = [self._fit_layer(layer, subset) for layer in self.features.extractor.groups]
        best = max(choices, key=lambda choice: choice.validation)
        by_layer = {choice.layer: choice.validation for choice in choices}
        predicted = best.probe.predict(self._positions(best.layer, self.task.test.images))
        return Fit(predicted, best.validation, best.layer, replace(best, by_layer=by_layer))

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
        self.task = linear.task

    def fit(self, subset: Subset) -> Fit:
        labels, validation = self.task.train.labels[subset.indices], self.task.validation.labels
        metric, best = self.linear.metric, None
        for layer in self.linear.train:
            data = self.linear.layer_data(layer, subset.indices)
            x = data.transform(data.validation)
            neighbours, value = fit_neighbours(
                data.transform(data.train), labels, x, validation, metric
            )
            if best is None or value > best[1]:
                best = layer, value, neighbours, data.transform
        assert best is not None
        layer, value, neighbours, transform = best
        return Fit(neighbours.predict(transform(self.linear.test[layer])), value, layer)


class CnnMethod:
    """A small residual network trained from scratch on the labelled pictures."""

    def __init__(
        self,
        task: Task,
        minutes: float,
        augmentation: str,
        metric: str,
        least_steps: int = LEAST_STEPS,
    ) -> None:
        self.name, self.task, self.minutes = "residual CNN from scratch", task, minutes
        self.augmentation, self.metric, self.least_steps = augmentation, metric, least_steps

    def fit(self, subset: Subset) -> Fit:
        train, validation = self.task.train.select(subset.indices), self.task.validation
        cnn = train_cnn(
            train.pixels,
            train.labels,
            validation.pixels,
            validation.labels,
            train.n_classes,
            minutes=self.minutes,
            augmentation=self.augmentation,
            metric=self.metric,
            seed=subset.seed,
            least_steps=self.least_steps,
        )
        value = metric_value(self.metric, validation.labels, predict_cnn(cnn, validation.pixels))
        return Fit(predict_cnn(cnn, self.task.test.pixels), value)


def needed_pictures(task: Task, chosen: Sequence[Subset]) -> Indices:
    """All training pictures of the subsets, and those used without their labels; sorted."""
    labelled = (subset.indices for subset in chosen)
    return np.unique(np.concatenate([unlabelled(len(task.train)), *labelled]))


def make_baselines(features: ModelFeatures, linear: LinearMethod) -> Iterator[Method]:
    """What the probe `linear` on `features` is compared with, on the same labels.

    Pixels, their principal components, the features of the untrained network, and the nearest
    neighbours on the trained one's. Each computes its features when it is its turn.
    """
    task, needed, metric = linear.task, linear.needed, linear.metric
    make = partial(LinearMethod, task=task, needed=needed, metric=metric)
    parts = (task.train.pixels, task.validation.pixels, task.test.pixels)
    grey = all((pixels == pixels[..., :1]).all() for pixels in parts)
    pixels = partial(pixel_features, grey=grey)
    yield make("logistic regression on pixels", pixels, components=0)
    yield make(
        f"logistic regression on {PIXEL_COMPONENTS} components", pixels, components=PIXEL_COMPONENTS
    )
    same = replace(features, pipeline=untrained(features.pipeline, seed=1))
    yield make("probe of the untrained network", same, components=linear.components)
    yield NeighbourMethod(linear)
