"""What a probe is compared with, and how the results are summed up."""

from __future__ import annotations

import statistics
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import igpt
from igpt.data.labels import Labelled, Task
from igpt.probe.linear import COMPONENTS, LayerData
from igpt.study.methods import (
    PIXEL_COMPONENTS,
    AttentionMethod,
    Fit,
    LinearMethod,
    ModelFeatures,
    NeighbourMethod,
    Subset,
    make_baselines,
    needed_pictures,
    pixel_features,
    untrained,
)
from igpt.study.outcomes import subsets, summarise, try_method


def random_pictures(n: int, seed: int) -> Labelled:
    """8x8 pictures [n], the brighter of which are of class 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 180, (n, 8, 8, 3), dtype=np.uint8)
    return Labelled(images + 60 * labels[:, None, None, None].astype(np.uint8), labels, ("a", "b"))


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(random_pictures(120, 0), random_pictures(40, 1), random_pictures(50, 2))


def linear(task: Task, represent: object, components: int | None = None) -> LinearMethod:
    needed = np.arange(len(task.train))
    return LinearMethod(
        "probe", represent, task, needed, components=components, metric="accuracy"
    )  # fmt: skip


def test_pixels_are_0_to_1_and_grey_ones_have_one_channel(task: Task) -> None:
    images = task.test.images
    (features,) = pixel_features(images, grey=False).values()
    assert features.shape == (50, 8 * 8 * 3)
    assert np.allclose(features, images.reshape(50, -1) / 255)
    (grey,) = pixel_features(images[..., :1].repeat(3, axis=-1), grey=True).values()
    assert np.allclose(grey, images[..., 0].reshape(50, -1) / 255)


def test_the_untrained_network_is_neither_the_trained_one_nor_its_beginning(tiny_run: Path) -> None:
    pipeline = igpt.load(tiny_run)
    fresh = untrained(pipeline, seed=1).model.state_dict()
    assert fresh.keys() == pipeline.model.state_dict().keys()
    began = untrained(pipeline, seed=0).model.state_dict()
    for name, trained in pipeline.model.state_dict().items():
        if trained.ndim > 1 and began[name].any():  # drawn, not all ones or zeros
            assert not torch.equal(fresh[name], trained), name
            assert not torch.equal(fresh[name], began[name]), name
        spread = began[name].std().item()
        assert fresh[name].std().item() == pytest.approx(spread, rel=0.2, abs=1e-6), name


@pytest.mark.parametrize(
    ("width", "components", "kept"),
    [(90, None, 90), (192, None, 120), (192, 64, 64), (192, 0, 192)],
)
def test_features_are_projected_where_they_outnumber_labels_or_as_told(
    task: Task, width: int, components: int | None, kept: int
) -> None:
    def represent(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"": images.reshape(len(images), -1)[:, :width].astype(np.float32)}

    every = np.arange(120)  # all are of the known pictures without labels, too
    assert linear(task, represent, components).layer_data("", every).transform.width == kept
    assert kept <= COMPONENTS


def test_baselines_take_what_they_are_called(task: Task, tiny_run: Path) -> None:
    features = ModelFeatures(igpt.load(tiny_run), ["1"], "mean", "float32")
    pixels, components, fresh, neighbours = make_baselines(features, linear(task, features))
    every = np.arange(120)
    assert isinstance(pixels, LinearMethod)
    assert pixels.layer_data("", every).transform.width == 8 * 8 * 3
    assert isinstance(components, LinearMethod)
    assert components.layer_data("", every).transform.width == PIXEL_COMPONENTS
    assert isinstance(fresh, LinearMethod)
    same_shape = features(task.test.images)["1"]
    assert fresh.test["1"].shape == same_shape.shape
    assert not np.allclose(fresh.test["1"], same_shape, atol=0.1)
    assert neighbours.fit(Subset(None, 0, every)).layer == "1"


def test_a_coloured_picture_among_grey_ones_to_test_on_is_no_error(tiny_run: Path) -> None:
    grey = [random_pictures(n, seed) for n, seed in ((60, 0), (20, 1), (20, 2))]
    for part in grey:
        part.pixels[:] = part.pixels[..., :1]
    features = ModelFeatures(igpt.load(tiny_run), ["1"], "mean", "float32")
    every = Subset(None, 0, np.arange(60))
    for width in (8 * 8, 8 * 8 * 3):
        task = Task(*grey)
        pixels, *_ = make_baselines(features, linear(task, features))
        assert isinstance(pixels, LinearMethod)
        assert pixels.layer_data("", every.indices).transform.width == width
        assert len(pixels.fit(every).predicted) == 20
        grey[2].pixels[3, 0, 0] = (255, 0, 0)


def test_test_is_predicted_at_the_layer_that_validation_chose(task: Task) -> None:
    def represent(images: np.ndarray) -> dict[str, np.ndarray]:
        signal = images.reshape(len(images), -1).astype(np.float32)
        noise = np.random.default_rng(len(images)).normal(size=(len(images), 5))
        noise = noise.astype(np.float32)
        return {"noise": noise, "signal": signal, "more noise": -noise}

    method, every = linear(task, represent), Subset(None, 0, np.arange(120))
    del method.test["noise"], method.test["more noise"]  # a look at them would be an error
    fit = method.fit(every)
    assert fit.layer == "signal"
    assert np.array_equal(fit.predicted, fit.probe.probe.predict(method.test["signal"]))
    neighbours = NeighbourMethod(method).fit(every)
    assert neighbours.layer == "signal"
    assert (neighbours.predicted == task.test.labels).mean() > 0.9


def test_of_a_linear_probes_layers_one_is_copied_at_a_time(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def represent(images: np.ndarray) -> dict[str, np.ndarray]:
        return {str(i): images.reshape(len(images), -1).astype(np.float32) for i in range(4)}

    method, held = linear(task, represent), weakref.WeakSet[LayerData]()
    make, most = method.layer_data, 0

    def counted(layer: str, indices: np.ndarray) -> LayerData:
        nonlocal most
        data = make(layer, indices)
        held.add(data)
        most = max(most, len(held))
        return data

    monkeypatch.setattr(LayerData, "__hash__", object.__hash__)
    monkeypatch.setattr(method, "layer_data", counted)
    method.fit(Subset(None, 0, np.arange(120)))
    assert most == 1


def test_an_attentive_probe_is_tested_at_the_layer_that_validation_chose(
    task: Task, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth, seen = iter([0.3, 0.9, 0.5]), list[np.ndarray]()

    class Head:
        def predict(self, positions: np.ndarray) -> np.ndarray:
            seen.append(positions)
            return task.test.labels

    def fit(*_: object, **__: object) -> tuple[Head, float]:
        return Head(), next(worth)

    monkeypatch.setattr("igpt.study.methods.fit_attention", fit)
    features = ModelFeatures(igpt.load(tiny_run), ["0", "1", "2"], "mean", "float32")
    fitted = AttentionMethod(features, task, "accuracy").fit(Subset(None, 0, np.arange(120)))
    assert (fitted.layer, fitted.validation) == ("1", 0.9)
    assert fitted.probe.by_layer == {"0": 0.3, "1": 0.9, "2": 0.5}
    (positions,) = seen
    whole = ModelFeatures(features.pipeline, ["1"], "flatten", "float32")
    assert np.array_equal(positions, whole(task.test.images)["1"])


class Fixed:
    """A method that is right on as many test pictures as its subset's seed says."""

    def __init__(self, task: Task) -> None:
        self.name, self.task = "fixed", task

    def fit(self, subset: Subset) -> Fit:
        predicted = self.task.test.labels.copy()
        predicted[: 10 + subset.seed] ^= 1
        return Fit(predicted, 0.5)


def test_summaries_are_means_and_deviations_over_the_seeds(task: Task) -> None:
    chosen = subsets(task, [3, None], seeds=3)
    assert [len(subset.indices) for subset in chosen] == [6, 6, 6, 120]
    assert len(needed_pictures(task, chosen)) == 120
    said: list[str] = []
    few, every = summarise(try_method(Fixed(task), chosen, said.append))
    reached = [1 - (10 + seed) / 50 for seed in range(3)]
    assert few.accuracy == pytest.approx((statistics.mean(reached), statistics.stdev(reached)))
    assert (few.labels_per_class, few.seeds) == (3, 3)
    assert (every.labels_per_class, every.seeds) == (None, 1)
    assert every.accuracy == pytest.approx((0.8, 0))
    assert "3 labels a class, seed 2: 76.0 % on test" in said[2]
