"""Linear probes for sets whose features are too many to hold: SGD as they stream by.

As the paper probes on ImageNet (section 3.4): momentum 0.9, learning rates from 30 down, a cosine
to zero, no penalty. The features of each batch are computed, used and dropped, so pictures may be
augmented; all layers come from one pass, and every layer has a classifier for each learning rate.
Validation chooses among them, as it chooses L-BFGS's strength.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.config import UserError
from igpt.data.loader import TokenLoader
from igpt.parallel.processes import mean, share_of_batch
from igpt.probe.features import Extractor, Features
from igpt.probe.linear import Basis, FittedProbe, LinearProbe, score

Labels = npt.NDArray[np.int64]
Raster = npt.NDArray[np.uint16]
Say = Callable[[str], None]

RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # the paper's 30, 10, 3, …, continued
MOMENTUM = 0.9
MEASURED = 5_000  # training pictures that give the features' mean and scale


@dataclass(frozen=True)
class SGD:
    """How the classifiers are trained; UserError for numbers that mean nothing."""

    epochs: int = 100
    batch_size: int = 1024
    rates: tuple[float, ...] = RATES
    augmentation: str = "none"  # none, flip or cifar
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or min(self.rates) <= 0:
            raise UserError("--epochs, --batch-size and --lr must be above 0")


class Classifiers:
    """Logistic regressions on one probe's features, one for each learning rate."""

    def __init__(self, basis: Basis, n_classes: int, n_rates: int, device: torch.device) -> None:
        self.basis = basis
        self._mean = torch.from_numpy(basis.mean).to(device)
        self._scale = torch.from_numpy(basis.scale).to(device)
        width = len(basis.mean)
        self.weights = [torch.zeros(n_classes, width, device=device) for _ in range(n_rates)]
        self.biases = [torch.zeros(n_classes, device=device) for _ in range(n_rates)]
        for parameter in (*self.weights, *self.biases):
            parameter.requires_grad_()

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The sum of the regressions' mean cross-entropies on features [B, F], labels [B]."""
        x = (features - self._mean) / self._scale
        logits = torch.stack([x @ w.T + b for w, b in zip(self.weights, self.biases, strict=True)])
        each = labels.expand(len(logits), -1)  # [R, B]
        return F.cross_entropy(logits.flatten(0, 1), each.flatten(), reduction="sum") / len(labels)

    def probes(self) -> list[LinearProbe]:
        """On raw features, in the order of the rates."""
        return [
            self.basis.fold(w.detach().double().cpu().numpy(), b.detach().double().cpu().numpy())
            for w, b in zip(self.weights, self.biases, strict=True)
        ]


def fit_sgd(
    extractor: Extractor,
    train: Raster,
    labels: Labels,
    validation: Raster,
    validation_labels: Labels,
    *,
    n_classes: int,
    metric: str,
    config: SGD,
    say: Say,
) -> FittedProbe:
    """The probe at the layer and learning rate that validation likes best; ties to the first.

    `train` [N, T] and `validation` are tokens in raster order. Of several processes, all call it,
    share the pictures of every batch, and return the same.
    """
    heads = {
        name: Classifiers(Basis.fit(f), n_classes, len(config.rates), extractor.model.wte.device)
        for name, f in _sample(extractor, train).items()
    }
    _train(extractor, heads, train, labels, config, say)
    rates = [f"{rate:g}" for rate in config.rates]
    probes = {
        (name, rate): probe
        for name, head in heads.items()
        for rate, probe in zip(rates, head.probes(), strict=True)
    }
    predicted: dict[tuple[str, str], list[Labels]] = {key: [] for key in probes}
    for features in extractor.every(validation):
        for (name, rate), probe in probes.items():
            predicted[name, rate].append(probe.predict(features[name]))
    values = {
        key: score(metric, validation_labels, np.concatenate(parts))
        for key, parts in predicted.items()
    }
    name, rate = max(values, key=lambda key: values[key])
    say(f"layer {name} at learning rate {rate}: {100 * values[name, rate]:.1f} % on validation")
    by_layer = {head: max(values[head, rate] for rate in rates) for head in heads}
    return FittedProbe(probes[name, rate], name, None, values[name, rate], by_layer)


def predict_all(extractor: Extractor, fitted: FittedProbe, raster: Raster) -> Labels:
    """The chosen probe's classes [N] of pictures [N, T], raster tokens."""
    parts = (features[fitted.layer] for features in extractor.every(raster))
    return np.concatenate([fitted.probe.predict(part) for part in parts])


def _sample(extractor: Extractor, train: Raster) -> dict[str, Features]:
    """Features of the first pictures, as they are without augmentation."""
    parts = list(extractor.every(train[:MEASURED]))
    return {name: np.concatenate([part[name] for part in parts]) for name in extractor.groups}


def _train(
    extractor: Extractor,
    heads: Mapping[str, Classifiers],
    train: Raster,
    labels: Labels,
    config: SGD,
    say: Say,
) -> None:
    size = config.batch_size
    rows = share_of_batch(size, "--batch-size")
    codec = extractor.codec
    loader = TokenLoader(train, labels, codec, size, config.seed, config.augmentation)
    groups = [
        {
            "params": [p for head in heads.values() for p in (head.weights[i], head.biases[i])],
            "lr": rate,
        }
        for i, rate in enumerate(config.rates)
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    steps = math.ceil(config.epochs * len(train) / size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = loader.batch(step, rows)
        assert batch.labels is not None
        features = extractor.batch(batch.tokens, step * size + rows.start)
        device = extractor.model.wte.device
        own = torch.stack([heads[n].loss(f, batch.labels.to(device)) for n, f in features.items()])
        own.sum().backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                mean(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % max(1, steps // 10) == 0:
            say(f"SGD, step {step + 1} of {steps}")
