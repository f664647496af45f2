"""The sampling engine: one prefill of what is given, then a step a pixel.

Each picture draws from uniforms of its own, a function of (seed, picture, position), so the same
seed gives the same pictures whatever the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igpt.config import SAMPLING_PRECISIONS, UserError
from igpt.decoders import Decoder, new_decoder
from igpt.device import autocast, check_precision, decoding_memory
from igpt.model import ImageGPT
from igpt.objectives import require_likelihood
from igpt.plan import cache_bytes
from igpt.rng import numpy_rng

MIN_TEMPERATURE = 1e-6  # logits over less would leave float32
MAX_BATCH = 256  # pictures: more bring no speed


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the model's distribution, and in what precision that is computed.

    Raises UserError for values outside their range.
    """

    temperature: float = 1.0  # 0: always the most likely token
    top_k: int | None = None  # only the k most likely tokens
    top_p: float | None = None  # only the most likely tokens that together have probability p
    seed: int = 0
    precision: str = "auto"  # of the decoder: float32, bfloat16, int8, or the device's own

    def __post_init__(self) -> None:
        check_precision(self.precision, SAMPLING_PRECISIONS)
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise UserError(
                f"temperature must be 0, or {MIN_TEMPERATURE} and more, got {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top-p must be above 0 and at most 1, got {self.top_p}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution [B, K] that tokens are drawn from, after temperature, top-k and top-p."""
    if sampling.temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        likely, index = logits.topk(sampling.top_k, dim=-1)  # no more of them where some are equal
        logits = torch.full_like(logits, -torch.inf).scatter(-1, index, likely)
    if sampling.top_p is not None:
        ordered, index = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(dim=-1)
        # A token stays when those before it have not reached p: the most likely always does.
        dropped = share.cumsum(dim=-1) - share >= sampling.top_p
        logits = logits.masked_fill(dropped.scatter(-1, index, dropped), -torch.inf)
    return logits.softmax(dim=-1)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [B] from distributions [B, K] and uniforms [B] in [0, 1), by inverting the CDF."""
    cumulative = weights.double().cumsum(dim=-1)
    threshold = uniforms.unsqueeze(-1) * cumulative[:, -1:]  # [B, 1]
    # The first token whose cumulative weight exceeds the threshold: never one of weight zero.
    return (cumulative <= threshold).sum(dim=-1)


def _uniforms(seed: int, pictures: range, n_positions: int) -> Tensor:
    rows = [numpy_rng(seed, "sample", i).random(n_positions) for i in pictures]
    return torch.from_numpy(np.stack(rows))  # [B, T]


@torch.inference_mode()
def generate(model: ImageGPT, prefix: Tensor, n: int, sampling: Sampling) -> Iterator[Tensor]:
    """Tokens [R, T] as they are painted: the n completions of the first picture, of the second, ...

    The prefix [B, t] may be empty (t = 0), and is computed once for all completions of a picture.
    As many of these are decoded side by side as `decoding_memory` holds beside their prefixes, up
    to MAX_BATCH: those of several pictures, or a part of those of one. Raises UserError for a
    BERT model, which has no order to paint in, for a prefix that is not shorter than the picture,
    and where the first logits are not finite.
    """
    if not model.config.causal:
        raise UserError("a BERT model cannot sample or complete: it has no order to paint in")
    require_likelihood(model.config)
    n_positions, t = model.config.n_positions, prefix.shape[1]
    if t >= n_positions:
        raise UserError(f"nothing to complete: all {n_positions} pixels are given")
    decoder, device = new_decoder(model, sampling.precision), model.wte.device
    hold = max(2, decoding_memory(device) // cache_bytes(model.config, "float32"))
    most = min(MAX_BATCH, hold - 1)
    pictures = max(1, min(most // n, hold // (n + 1)))  # whose completions fit side by side
    for first in range(0, len(prefix), pictures):
        part = prefix[first : first + pictures].to(device, torch.int64)
        with autocast(device, torch.float32):  # not what is around the call
            logits = decoder.prefill(part)  # [P, K]
        if not logits.isfinite().all():
            raise UserError("the model's logits are not finite: its weights are broken")
        every = range(first * n, (first + len(part)) * n)
        for start in range(0, len(every), most):
            rows = every[start : start + most]
            which = torch.tensor([row // n - first for row in rows], device=device)
            uniforms = _uniforms(sampling.seed, rows, n_positions).to(device)
            decoder.select(which)
            with autocast(device, torch.float32):
                painted = _paint(decoder, part[which], logits[which], uniforms, sampling)
            yield painted.cpu()


def _paint(
    decoder: Decoder, prefix: Tensor, logits: Tensor, uniforms: Tensor, sampling: Sampling
) -> Tensor:
    """Tokens [R, T]: row r continues prefix[r], whose next pixel has logits[r], by uniforms[r]."""
    t, n_positions = prefix.shape[1], uniforms.shape[1]
    tokens = torch.empty(len(prefix), n_positions, dtype=torch.long, device=prefix.device)
    tokens[:, :t] = prefix
    for position in range(t, n_positions):
        if position > t:
            logits = decoder.step(tokens[:, position - 1])
        tokens[:, position] = draw(probabilities(logits, sampling), uniforms[:, position])
    return tokens
