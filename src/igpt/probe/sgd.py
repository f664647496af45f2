"""Linear probes for sets that are too many to hold: SGD as their features stream by.

As the paper probes on ImageNet (section 3.4): momentum 0.9, learning rates from 30 down, a cosine
to zero, no penalty; but for 100 epochs of batches of 1,024, where the paper takes a million steps,
and on standardised features, for which fewer do. The pictures of each batch are decoded when it is
their turn, and their features computed, used and dropped, so they may be augmented. All layers come
from one pass, and every layer has a classifier for each learning rate; validation chooses among
them, as it chooses L-BFGS's strength.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.config import Say, UserError
from igpt.data.labels import Labelled, LazyLabelled
from igpt.data.loader import Batch, Loader, prefetch
from igpt.device import to_device
from igpt.order import Encoded
from igpt.parallel.processes import (
    mean_over_processes_,
    name_skipped,
    share_of_batch,
    together,
)
from igpt.probe.features import Extractor, Features
from igpt.probe.linear import FeatureTransform, FittedProbe, LinearProbe, log_loss, metric_value
from igpt.probe.unfinished import Unfinished
from igpt.rng import numpy_rng
from igpt.types import Labels, Pixels

RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # the paper's 30, 10, 3, …, continued
MOMENTUM = 0.9
SAVES = 100  # of a fit on its way
MEASURED = 5_000  # training pictures that give the features' mean and scale


@dataclass(frozen=True)
class SGDConfig:
    """How the classifiers are trained; UserError for numbers that mean nothing."""

    epochs: int = 100
    batch_size: int = 1024
    rates: tuple[float, ...] = RATES
    augmentation: str = "none"  # none, flip, cifar or imagenet
    seed: int = 0

    def __post_init__(self) -> None:
        rates = all(0 < rate < math.inf for rate in self.rates)
        if self.epochs < 1 or self.batch_size < 1 or not rates:
            raise UserError("--epochs, --batch-size and --lr must be above 0, and finite")


class Classifiers:
    """Logistic regressions on one probe's features, one for each of R learning rates."""

    def __init__(
        self, transform: FeatureTransform, n_classes: int, n_rates: int, device: torch.device
    ) -> None:
        self.transform = transform
        self._mean = torch.from_numpy(transform.mean).to(device)
        self._scale = torch.from_numpy(transform.scale).to(device)
        width = len(transform.mean)
        self.weight = torch.zeros(n_rates, n_classes, width, device=device, requires_grad=True)
        self.bias = torch.zeros(n_rates, n_classes, device=device, requires_grad=True)
        self.momentum = [torch.zeros_like(p) for p in (self.weight, self.bias)]

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The sum of the regressions' mean cross-entropies on features [B, F], labels [B]."""
        x = (features - self._mean) / self._scale
        logits = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())  # [B, R * C]
        each = labels.repeat_interleave(len(self.weight))  # [B * R]
        logits = logits.view(len(each), -1)  # [B * R, C]
        return F.cross_entropy(logits, each, reduction="sum") / len(labels)

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        """SGD with momentum, each regression at its rate [R], on all processes' mean gradients.

        By hand, as an optimizer of PyTorch has one rate for a whole tensor.
        """
        for parameter, momentum in zip((self.weight, self.bias), self.momentum, strict=True):
            assert parameter.grad is not None
            momentum.mul_(MOMENTUM).add_(mean_over_processes_(parameter.grad))
            parameter -= rates.view(-1, *[1] * (parameter.ndim - 1)) * momentum
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """All that a step changes."""
        names = ("weight", "bias", "weight_momentum", "bias_momentum")
        return dict(zip(names, (self.weight, self.bias, *self.momentum), strict=True))

    def probes(self) -> list[LinearProbe]:
        """On raw features, in the order of the rates."""
        weights, biases = (p.detach().double().cpu().numpy() for p in (self.weight, self.bias))
        return [self.transform.fold(w, b) for w, b in zip(weights, biases, strict=True)]


def fit_sgd(
    extractor: Extractor,
    train: LazyLabelled,
    validation: Labelled,
    *,
    metric: str,
    config: SGDConfig,
    unfinished: Unfinished,
    say: Say,
) -> FittedProbe:
    """The probe at the layer and learning rate that validation likes best; `FittedProbe.rank`.

    It goes on from what is `unfinished`, if anything is, and keeps itself there, for the caller to
    remove when the probe is kept.

    A training picture that cannot be read is replaced by another, and named. Of several processes,
    all call it, share the pictures of every batch, and return the same. Raises UserError when they
    cannot share a batch, and for crops of pictures that are tokens.
    """
    codec, device = extractor.codec, extractor.model.wte.device
    rows = share_of_batch(config.batch_size, "--batch-size")
    with together():
        loader = train.loader(codec, config.batch_size, config.seed, config.augmentation)
    with closing(loader):
        heads = {
            name: Classifiers(
                FeatureTransform.fit(features), train.n_classes, len(config.rates), device
            )
            for name, features in _sample(extractor, train, config.seed).items()
        }
        steps = math.ceil(config.epochs * len(train) / config.batch_size)
        state = {
            f"{name}/{part}": tensor
            for name, head in heads.items()
            for part, tensor in head.state().items()
        }
        done = unfinished.load(state)
        if done:
            say(f"SGD goes on at step {done} of {steps}")
        batches = _batches(loader, range(done, steps), rows)
        for step in _train(extractor, heads, batches, steps, config):
            if step % max(1, steps // SAVES) == 0 or step == steps:
                unfinished.save(step, state)
            if step % max(1, steps // 10) == 0:
                say(f"SGD, step {step} of {steps}")
    name_skipped(loader.skipped, say)
    return _choose(extractor, heads, validation, metric, config, say)


def _choose(
    extractor: Extractor,
    heads: Mapping[str, Classifiers],
    validation: Labelled,
    metric: str,
    config: SGDConfig,
    say: Say,
) -> FittedProbe:
    """The best of all layers' and rates' probes."""
    rates = [f"{rate:g}" for rate in config.rates]
    probes = {
        (name, rate): probe
        for name, head in heads.items()
        for rate, probe in zip(rates, head.probes(), strict=True)
    }
    labels, done = validation.labels, 0
    predicted: dict[tuple[str, str], list[Labels]] = {key: [] for key in probes}
    nats = dict.fromkeys(probes, 0.0)
    for features in extractor.every(validation.images):  # whose logits together may be gigabytes
        start, done = done, done + len(next(iter(features.values())))
        for (name, rate), probe in probes.items():
            logits = probe.logits(features[name])
            predicted[name, rate].append(logits.argmax(axis=1))
            nats[name, rate] += log_loss(logits, labels[start:done]) * (done - start)
    fitted = {}
    for (name, rate), probe in probes.items():
        value = metric_value(metric, labels, np.concatenate(predicted[name, rate]))
        loss = nats[name, rate] / len(labels)
        fitted[name, rate] = FittedProbe(probe, name, None, value, {}, loss)
    name, rate = max(fitted, key=lambda key: fitted[key].rank)
    best = fitted[name, rate]
    say(f"layer {name} at learning rate {rate}: {100 * best.validation:.1f} % on validation")
    by_layer = {head: max(fitted[head, rate].validation for rate in rates) for head in heads}
    return replace(best, by_layer=by_layer)


def predict_all(extractor: Extractor, fitted: FittedProbe, images: Pixels | Encoded) -> Labels:
    """The chosen probe's classes [N] of pictures [N, S, S, 3], or encoded ones."""
    every = extractor.every(images)
    return np.concatenate([fitted.probe.predict(features[fitted.layer]) for features in every])


def _sample(extractor: Extractor, train: LazyLabelled, seed: int) -> dict[str, Features]:
    """Features of some pictures, as they are without augmentation.

    They are drawn, since those that lie together in a folder are of one class.
    """
    chosen = numpy_rng(seed, "measured").permutation(len(train))[:MEASURED]
    with together():
        sample = train.select(np.sort(chosen)).encode(extractor.codec)
    return extractor.whole(sample.images)


def _batches(loader: Loader, steps: range, rows: range) -> Iterator[Batch]:
    """This process's rows of the steps' batches, the next made while the last is used."""
    for coming in prefetch(loader, steps, rows):
        with together():
            batch = coming.result()
        yield batch


def _train(
    extractor: Extractor,
    heads: Mapping[str, Classifiers],
    batches: Iterable[Batch],
    steps: int,
    config: SGDConfig,
) -> Iterator[int]:
    """Make a step for each batch, and give the number of those that are done after each."""
    device = extractor.model.wte.device
    rates = torch.tensor(config.rates, device=device)
    for batch in batches:
        assert batch.labels is not None
        first = batch.step * config.batch_size + batch.rows.start
        features = extractor.batch(batch.tokens, first)
        labels = to_device(batch.labels, device)
        losses = torch.stack([heads[name].loss(part, labels) for name, part in features.items()])
        losses.sum().backward()  # type: ignore[no-untyped-call]
        cosine = 0.5 * (1 + math.cos(math.pi * batch.step / steps))
        for head in heads.values():
            head.step(cosine * rates)
        yield batch.step + 1
