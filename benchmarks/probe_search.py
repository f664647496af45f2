"""What moves a linear probe with few labels: layers, pooling, components, whitening, the penalty.

python benchmarks/probe_search.py RUN [--labels-per-class 10 100] [--seeds 5] [--layer 6] [--grid 7]

Everything is compared on validation pictures, so that test is not looked at: accuracy by what is
varied, mean and standard deviation over the subsets, each at the strength of the L2 penalty that
validation likes best; then, of the mean and of the grid, by that strength.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

from igpt.cli.arguments import add_data, run_data
from igpt.data.labels import Task
from igpt.pipeline import Pipeline, load
from igpt.probe.features import Extractor, Features, make_pool, parse_layers
from igpt.probe.linear import (
    STRENGTHS,
    FeatureTransform,
    LayerData,
    fit_layer,
    logistic_path,
    metric_value,
)
from igpt.study.methods import Subset, needed_pictures
from igpt.study.outcomes import subsets

COMPONENTS = (64, 256)


def whitened(features: Features, components: int) -> FeatureTransform:
    """Principal components of the same variance."""
    basis = FeatureTransform.fit(features, components)
    assert basis.components is not None
    deviations = basis(features).std(axis=0)
    return FeatureTransform(basis.mean, basis.scale, basis.components / deviations[:, None])


class Study:
    """Features of the pictures that are needed, and probes on them."""

    def __init__(self, pipeline: Pipeline, task: Task, chosen: list[Subset], metric: str) -> None:
        self.pipeline, self.task, self.chosen, self.metric = pipeline, task, chosen, metric
        self.needed = needed_pictures(task, chosen)
        self.place = {index: i for i, index in enumerate(self.needed.tolist())}

    def features(self, layers: str, pool: str) -> tuple[Features, Features]:
        """[N, F] of the needed training pictures and of the validation pictures."""
        model, codec = self.pipeline.model, self.pipeline.codec
        groups = {layers: parse_layers(layers, model.config.n_layer)}
        dtype = self.pipeline.dtype("auto")
        extractor = Extractor(model, codec, make_pool(pool, codec), groups, dtype)
        train = self.task.train.select(self.needed).images
        validation = self.task.validation.images
        return extractor.whole(train)[layers], extractor.whole(validation)[layers]

    def data(self, features: tuple[Features, Features], basis: FeatureTransform) -> Iterator[
        tuple[Subset, LayerData]
    ]:  # fmt: skip
        """What a probe is fitted to, for every subset."""
        train, validation = features
        for subset in self.chosen:
            rows = [self.place[index] for index in subset.indices.tolist()]
            yield subset, LayerData(train[rows], validation, basis)

    def row(self, name: str, features: tuple[Features, Features], basis: FeatureTransform) -> None:
        """Print what validation says of every number of labels."""
        found: dict[int | None, list[float]] = {}
        labels, held_out = self.task.train.labels, self.task.validation.labels
        for subset, data in self.data(features, basis):
            chosen = labels[subset.indices]
            n_classes = self.task.train.n_classes
            fitted = fit_layer("", data, chosen, held_out, n_classes, self.metric)
            found.setdefault(subset.per_class, []).append(fitted.validation)
        self._print(name, found)

    def by_strength(
        self, name: str, features: tuple[Features, Features], basis: FeatureTransform
    ) -> None:
        """A row for every strength of the penalty."""
        labels, held_out = self.task.train.labels, self.task.validation.labels
        found: dict[float, dict[int | None, list[float]]] = {c: {} for c in STRENGTHS}
        for subset, data in self.data(features, basis):
            x, n_classes = basis(data.train), self.task.train.n_classes
            path = logistic_path(x, labels[subset.indices], n_classes, STRENGTHS)
            for strength, (weight, bias) in zip(STRENGTHS, path, strict=True):
                predicted = basis.fold(weight, bias).predict(data.validation)
                value = metric_value(self.metric, held_out, predicted)
                found[strength].setdefault(subset.per_class, []).append(value)
        for strength, values in found.items():
            self._print(f"{name}, C = {strength:g}", values)

    @staticmethod
    def _print(name: str, found: dict[int | None, list[float]]) -> None:
        spreads = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in found.values()]
        cells = [
            f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"
            for values, spread in zip(found.values(), spreads, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    add_data(parser, limit=None)
    parser.add_argument("--labels-per-class", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--layer", type=int, default=6, help="of the grids")
    parser.add_argument("--grid", type=int, default=7)
    args = parser.parse_args()
    pipeline = load(args.run)
    task = run_data(args).task(pipeline.image_size)
    chosen = subsets(task, args.labels_per_class, args.seeds)
    study = Study(pipeline, task, chosen, args.metric)
    layer, top, grid = args.layer, pipeline.model.config.n_layer, f"grid:{args.grid}"

    sizes = " | ".join(f"{n} labels" for n in args.labels_per_class)
    print(f"| {args.run.name}, validation {args.metric}, % | {sizes} |")
    print(f"|---|{'---|' * len(args.labels_per_class)}")
    mean = study.features(str(layer), "mean")
    study.row(f"layer {layer}, mean", mean, FeatureTransform.fit(mean[0]))
    study.row(f"layer {layer}, mean, whitened", mean, whitened(mean[0], mean[0].shape[1]))
    for layers in (f"{layer - 1}:{layer + 1}", f"{top // 2}:{top}", f"0:{top}"):
        beside = study.features(layers, "mean")
        study.row(f"layers {layers} side by side, mean", beside, FeatureTransform.fit(beside[0]))
    last = study.features(str(layer), "last")
    study.row(f"layer {layer}, last position", last, FeatureTransform.fit(last[0]))
    cells = study.features(str(layer), grid)
    study.row(f"layer {layer}, {grid}", cells, FeatureTransform.fit(cells[0]))
    for components in COMPONENTS:
        name = f"layer {layer}, {grid}, {components} components"
        study.row(name, cells, FeatureTransform.fit(cells[0], components))
        study.row(f"{name}, whitened", cells, whitened(cells[0], components))
    beside = study.features(f"{layer - 1}:{layer + 1}", grid)
    name = f"layers {layer - 1}:{layer + 1} side by side, {grid}, {COMPONENTS[-1]} components"
    study.row(name, beside, FeatureTransform.fit(beside[0], COMPONENTS[-1]))
    flat = study.features(str(layer), "flatten")
    name = f"layer {layer}, all positions, {COMPONENTS[-1]} components"
    study.row(name, flat, FeatureTransform.fit(flat[0], COMPONENTS[-1]))
    study.by_strength("mean", mean, FeatureTransform.fit(mean[0]))
    study.by_strength(grid, cells, FeatureTransform.fit(cells[0]))


if __name__ == "__main__":
    main()
