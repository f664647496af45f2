"""What the model is trained to do (paper, sections 2.1 and 2.3): L_AR and L_BERT.

An objective gives one value a picture, [B], in nats per predicted token. Callers sum these and
divide by the global count, so that no objective needs to know about processes or micro-batches.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.data import Batch
from igpt.model import ImageGPT
from igpt.rng import torch_rng


def token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """-ln p of every token, [B, T], in float32, from logits [B, T, K] and tokens [B, T]."""
    flat = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return flat.view_as(tokens)


def masked_mean(nats: Tensor, masked: Tensor) -> Tensor:
    """Mean of nats [B, T] over each picture's masked positions, [B].

    OpenAI's code divides by their number, which can be zero in a small picture: that gives 0 here.
    """
    return (nats * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)


class Objective(Protocol):
    """A value [B] in nats per predicted token for each picture of a batch.

    `inputs` draws what is random; the call is a pure function of them, and can be compiled.
    """

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]: ...

    def __call__(self, model: ImageGPT, *inputs: Tensor) -> Tensor: ...


class AR:
    """L_AR: every token from those before it, averaged over the sequence."""

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return (batch.tokens,)

    def __call__(self, model: ImageGPT, *inputs: Tensor) -> Tensor:
        (tokens,) = inputs
        return token_nats(model(tokens), tokens).mean(dim=1)


class BERT:
    """L_BERT: each position hidden with `probability`, predicted from the others.

    The mask is a function of (seed, step, row); `stream` keeps training and evaluation apart.
    """

    def __init__(self, probability: float, seed: int, stream: str) -> None:
        self.probability, self.seed, self.stream = probability, seed, stream

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Tokens [B, T] and the mask [B, T]: True is hidden."""
        generator = torch_rng(self.seed, "mask", self.stream, batch.step)
        shape = (batch.rows.stop, batch.tokens.shape[1])
        draws = torch.rand(shape, generator=generator)[batch.rows.start :]
        return batch.tokens, (draws < self.probability).to(batch.tokens.device)

    def __call__(self, model: ImageGPT, *inputs: Tensor) -> Tensor:
        tokens, masked = inputs
        return masked_mean(token_nats(model(tokens, masked), tokens), masked)


def make_objective(name: str, mask_probability: float, seed: int, stream: str) -> Objective:
    """The objective called `name`, "ar" or "bert"; `stream` is "train" or "evaluate"."""
    if name == "ar":
        return AR()
    return BERT(mask_probability, seed, stream)
