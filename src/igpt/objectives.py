"""What the model is trained to do (paper, sections 2.1 and 2.3): L_AR, L_BERT, and L_GEN + L_CLF.

An objective gives one loss a picture, [B]. Callers sum these and divide by the global count, so
that no objective needs to know about processes or micro-batches.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.config import ModelConfig, UserError
from igpt.data.loader import Batch
from igpt.model import ImageGPT
from igpt.rng import torch_rng


def token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """-ln p of every token, [B, T], in float32, from logits [B, T, K] and tokens [B, T]."""
    flat = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return flat.view_as(tokens)


def masked_mean(nats: Tensor, masked: Tensor) -> Tensor:
    """Mean of nats [B, T] over each picture's masked positions, [B]; 0 where there are none."""
    return (nats * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)


class Objective(Protocol):
    """A loss for each picture of a batch, [B].

    `inputs` draws what is random; the call is a pure function of them, and can be compiled.
    """

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]: ...

    def __call__(self, model: ImageGPT, *inputs: Tensor) -> Tensor: ...


class Generative(Objective, Protocol):
    """L_GEN, in nats per predicted token: an objective of the model's token logits.

    `inputs` are what its trunk takes.
    """

    def nats(self, logits: Tensor, *inputs: Tensor) -> Tensor: ...

    def __call__(self, model: ImageGPT, *inputs: Tensor) -> Tensor:
        return self.nats(model(*inputs), *inputs)


class AR(Generative):
    """L_AR: every token from those before it, averaged over the sequence."""

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return (batch.tokens,)

    def nats(self, logits: Tensor, *inputs: Tensor) -> Tensor:
        """[B] of logits [B, T, K] and tokens [B, T]."""
        (tokens,) = inputs
        return token_nats(logits, tokens).mean(dim=1)


class BERT(Generative):
    """L_BERT: each position hidden with `probability`, predicted from the others.

    The mask is a function of (seed, step, row); `stream` keeps training and evaluation apart. A
    picture so small that nothing of it was hidden hides one position, as it has no loss otherwise.
    """

    def __init__(self, probability: float, seed: int, stream: str) -> None:
        self.probability, self.seed, self.stream = probability, seed, stream

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Tokens [B, T] and the mask [B, T]: True is hidden."""
        generator = torch_rng(self.seed, "mask", self.stream, batch.step)
        shape = (batch.rows.stop, batch.tokens.shape[1])
        draws = torch.rand(shape, generator=generator, dtype=torch.float32)[batch.rows.start :]
        masked = (draws < self.probability) | (draws == draws.amin(dim=1, keepdim=True))
        return batch.tokens, masked

    def nats(self, logits: Tensor, *inputs: Tensor) -> Tensor:
        """[B] of logits [B, T, K], tokens [B, T] and their mask [B, T]."""
        tokens, masked = inputs
        return masked_mean(token_nats(logits, tokens), masked)


class Joint:
    """gen_weight * L_GEN + clf_weight * L_CLF, from one pass (paper, section 2.3).

    L_CLF is the cross-entropy of the class in nats, with `label_smoothing`, times the weight of the
    picture's class in `class_weights` [C].
    """

    def __init__(
        self,
        generative: Generative,
        class_weights: Tensor,
        *,
        gen_weight: float = 1.0,
        clf_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        self.generative, self.class_weights = generative, class_weights
        self.gen_weight, self.clf_weight = gen_weight, clf_weight
        self.label_smoothing = label_smoothing

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Labels [B], the weights of their classes [B], and those of L_GEN."""
        assert batch.labels is not None
        weights = self.class_weights[batch.labels]
        return batch.labels, weights, *self.generative.inputs(batch)

    def __call__(self, model: ImageGPT, *inputs: Tensor) -> Tensor:
        labels, weights, *generative = inputs
        n = model.trunk(*generative)  # [B, T, d]
        logits = model.classify(n).float()  # [B, C]
        loss = (
            self.clf_weight
            * weights
            * F.cross_entropy(
                logits, labels, reduction="none", label_smoothing=self.label_smoothing
            )
        )
        if self.gen_weight:
            loss = loss + self.gen_weight * self.generative.nats(model.head(n), *generative)
        return loss


def require_likelihood(config: ModelConfig) -> None:
    """UserError for a model that is shown at each position the very pixel it would predict there.

    So does `transformers`' classifier, which puts no start token before the pixels.
    """
    if not config.predicts_pixels:
        raise UserError("this model reads unshifted tokens to classify: it predicts no next pixel")


def generative_objective(config: ModelConfig, seed: int, stream: str) -> Generative:
    """What a model of this shape is trained to do; `stream` is "train" or "evaluate"."""
    return AR() if config.causal else BERT(config.mask_probability, seed, stream)
