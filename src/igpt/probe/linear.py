"""Linear probes: how much of a class is written linearly in a layer (paper, sections 2.4 and 3.4).

Multinomial logistic regression by L-BFGS on standardised features, without augmentation. The layer
and the strength of the L2 penalty are chosen on validation data; test is for the caller, once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from igpt.config import METRICS, UserError
from igpt.probe.features import Features
from igpt.types import Floats, Labels

# C of scikit-learn, the inverse of the penalty on the sum of losses: from strong to weak.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ITERATIONS = 300  # of L-BFGS; a fit that needs more is one that validation would not choose
COMPONENTS = 256  # principal components kept where features outnumber labels
CONSTANT = 1e-5  # largest range, relative to the mean, of a feature that tells nothing


@dataclass(frozen=True)
class LinearProbe:
    """Class logits = features @ weight.T + bias; standardisation and PCA are in the weights."""

    weight: npt.NDArray[np.float32]  # [C, F]
    bias: npt.NDArray[np.float32]  # [C]; -inf for a class that no label showed

    def logits(self, features: Features) -> Features:
        """[N, C] of features [N, F]."""
        return features @ self.weight.T + self.bias

    def predict(self, features: Features) -> Labels:
        """The most likely class [N] of features [N, F]."""
        return self.logits(features).argmax(axis=1)


@dataclass(frozen=True)
class FeatureTransform:
    """An affine change of features, found without labels: standardised, then perhaps projected."""

    mean: Features  # [F]
    scale: Features  # [F]
    components: Features | None = None  # [P, F]

    @classmethod
    def fit(cls, features: Features, components: int = 0) -> FeatureTransform:
        """From unlabelled features [N, F]; `components` principal ones are kept, 0 keeps all."""
        from sklearn.decomposition import PCA

        mean, scale = features.mean(axis=0), features.std(axis=0)
        # What is constant but for rounding would be blown up by rounding errors: its own, and those
        # of the sums behind the mean.
        scale[np.ptp(features, axis=0) <= CONSTANT * np.abs(mean)] = 1
        components = min(components, *features.shape)
        if components == 0:
            return cls(mean, scale)
        pca = PCA(components, svd_solver="randomized", random_state=0)
        with np.errstate(invalid="ignore"):  # where all features are constant
            return cls(mean, scale, pca.fit((features - mean) / scale).components_)

    @property
    def width(self) -> int:
        """F or P: how many numbers are left of a picture."""
        return len(self.mean) if self.components is None else len(self.components)

    def __call__(self, features: Features) -> Features:
        """[N, F] to [N, F] or [N, P]."""
        standard: Features = (features - self.mean) / self.scale
        return standard if self.components is None else standard @ self.components.T

    def fold(self, weight: Floats, bias: Floats) -> LinearProbe:
        """The probe on raw features that equals weight [C, P], bias [C] on changed ones."""
        wide = weight if self.components is None else weight @ self.components
        raw = wide / self.scale
        return LinearProbe(raw.astype(np.float32), (bias - raw @ self.mean).astype(np.float32))


def usual_components(n_features: int, n_labels: int) -> int:
    """How many principal components a probe keeps unless it is told: 0, all features, unless they
    outnumber the labels.
    """
    return COMPONENTS if n_features > n_labels else 0


class Probe(Protocol):
    """Classes of features [N, F]."""

    def logits(self, features: Features) -> Features: ...

    def predict(self, features: Features) -> Labels: ...


@dataclass(frozen=True)
class FittedProbe:
    """A probe, and how it was chosen."""

    probe: Probe
    layer: str  # name of the representation's layer
    strength: float | None  # C of logistic regression
    validation: float  # the metric on validation data
    by_layer: dict[str, float]  # the best of each layer
    loss: float = 0.0  # nats of the validation labels, which decide between equals

    @property
    def rank(self) -> tuple[float, float]:
        """By what probes are compared: few validation pictures often leave equal metrics."""
        return self.validation, -self.loss


@dataclass(frozen=True)
class LayerData:
    """One layer's features of the labelled and the validation pictures, and its transform."""

    train: Features  # [n, F]
    validation: Features  # [v, F]
    transform: FeatureTransform


def metric_value(metric: str, labels: Labels, predicted: Labels) -> float:
    """Accuracy, or the mean of the classes' own accuracies, of predictions [N]."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    if metric not in METRICS:
        raise UserError(f"unknown metric '{metric}', expected one of: {', '.join(METRICS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predicted classes that the labels lack
        function = accuracy_score if metric == "accuracy" else balanced_accuracy_score
        return float(function(labels, predicted))


def fit_probe(
    layers: Iterable[tuple[str, LayerData]],
    labels: Labels,
    validation_labels: Labels,
    n_classes: int,
    metric: str = "accuracy",
) -> FittedProbe:
    """The probe at the layer and strength that validation likes best; `FittedProbe.rank`.

    Of `layers`, named, one is held at a time.
    Raises UserError when the labels [n] show one class only.
    """
    if len(np.unique(labels)) < 2:
        raise UserError("a probe needs labels of two classes or more")
    asked = (labels, validation_labels, n_classes, metric)
    fitted = list(starmap(lambda name, data: fit_layer(name, data, *asked), layers))
    best = max(fitted, key=lambda choice: choice.rank)
    by_layer = {choice.layer: choice.validation for choice in fitted}
    return replace(best, by_layer=by_layer)


def fit_layer(
    name: str,
    data: LayerData,
    labels: Labels,
    validation_labels: Labels,
    n_classes: int,
    metric: str,
) -> FittedProbe:
    """The best strength of one layer."""
    x = data.transform(data.train)  # [n, P]
    fitted = []
    for strength, (weight, bias) in zip(
        STRENGTHS, logistic_path(x, labels, n_classes, STRENGTHS), strict=True
    ):
        probe = data.transform.fold(weight, bias)
        logits = probe.logits(data.validation)
        value = metric_value(metric, validation_labels, logits.argmax(axis=1))
        loss = log_loss(logits, validation_labels)
        fitted.append(FittedProbe(probe, name, strength, value, {}, loss))
    return max(fitted, key=lambda choice: choice.rank)


def log_loss(logits: Features, labels: Labels) -> float:
    """Mean -ln p of the labels [N] by logits [N, C], in nats.

    A class that training lacked has a logit of -inf; it counts as p = 1e-15, not as infinite.
    """
    nats = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none")
    return float(nats.clamp(max=-math.log(1e-15)).mean())


def logistic_path(
    x: Features, labels: Labels, n_classes: int, strengths: Sequence[float]
) -> list[tuple[Floats, Floats]]:
    """Weights [C, F] and biases [C] of logistic regression on x [n, F], a pair for each strength.

    Each fit starts from the one before. With more features than pictures it is done on the n
    dimensions that the pictures span, which the penalised solution cannot leave.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    span = None
    if x.shape[1] > x.shape[0]:
        span = np.linalg.svd(x, full_matrices=False)[2]  # [n, F]
        x = x @ span.T
    regression = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    path = []
    for strength in strengths:
        regression.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # With a label a class, scikit-learn takes them for numbers to regress on.
            warnings.filterwarnings("ignore", "The number of unique classes is greater")
            regression.fit(x, labels)
        weight, bias = _all_classes(
            regression.coef_, regression.intercept_, regression.classes_, n_classes
        )
        path.append((weight if span is None else weight @ span, bias))
    return path


def _all_classes(
    weight: Floats, bias: Floats, classes: Labels, n_classes: int
) -> tuple[Floats, Floats]:
    """scikit-learn's coefficients, a row for every class; two classes have one row there."""
    if len(classes) == 2:
        weight = np.concatenate((np.zeros_like(weight), weight))
        bias = np.concatenate((np.zeros_like(bias), bias))
    rows, offsets = np.zeros((n_classes, weight.shape[1])), np.full(n_classes, -np.inf)
    rows[classes], offsets[classes] = weight, bias
    return rows, offsets
