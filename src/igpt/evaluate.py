"""Exact likelihood of a set of pictures: every picture counted once, none padded or dropped.

The batches are the same for any number of processes, which share them, and so is every picture's
value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from igpt.config import ModelConfig, UserError
from igpt.data.loader import Batch
from igpt.device import autocast, replay_batches, to_device
from igpt.model import ImageGPT
from igpt.objectives import Objective, require_likelihood, token_nats
from igpt.parallel.processes import in_turn, share_of, size
from igpt.rng import torch_rng

BATCH = 32  # pictures a forward pass, unless the caller says how many


@dataclass(frozen=True)
class Likelihood:
    """The mean over a set of pictures, from which every reported unit follows."""

    nats_per_pixel: float  # mean over pictures of the mean over a picture's predicted pixels
    n_pixels: int  # of one picture
    count: int  # pictures

    @property
    def bits_per_pixel(self) -> float:
        return self.nats_per_pixel / math.log(2)

    @property
    def nats_per_picture(self) -> float:
        return self.nats_per_pixel * self.n_pixels


@torch.no_grad()  # inference_mode would leave a split model tensors that nothing else can use
def in_batches(
    tokens: torch.Tensor,
    compute: Callable[[torch.Tensor, int], torch.Tensor],
    batch_size: int = BATCH,
    check: Callable[[], None] | None = None,
) -> Iterator[torch.Tensor]:
    """`compute` of each batch [B, T] of tokens [N, T] and the place of its first picture, in order.

    A batch is int64, whatever whole numbers the tokens are. `check` is called before each and may
    raise. Of several processes, each computes its share of the batches, and all are given all.
    """
    starts = range(0, len(tokens), batch_size)
    for place, counts in share_of(len(starts)):
        if check is not None:
            check()
        start = starts[place]
        values = compute(tokens[start : start + batch_size].to(torch.int64), start)
        yield from in_turn(values if counts else values[:0])


def in_dtype(
    compute: Callable[..., torch.Tensor], model: ImageGPT, dtype: torch.dtype
) -> Callable[..., torch.Tensor]:
    """`compute` of each batch's tensors, wherever they are, with the model's products in `dtype`.

    On a GPU that this process is alone with as `replay_batches`.
    """
    device = model.wte.device

    def in_this_type(*inputs: torch.Tensor) -> torch.Tensor:
        with autocast(device, dtype):
            return compute(*inputs)

    fastest = replay_batches(in_this_type, device, alone=size() == 1)
    return lambda *inputs: fastest(*(to_device(x, device) for x in inputs))


def picture_nats(
    model: ImageGPT,
    objective: Objective,
    tokens: torch.Tensor,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    mask_batch: int | None = None,
    check: Callable[[], None] | None = None,
) -> torch.Tensor:
    """The objective of each of the pictures `tokens` [N, T] in the model's order: nats/pixel, [N].

    Masks are drawn for `mask_batch` pictures at a time, a multiple of `batch_size` (None: itself).
    `check` is called before every batch and may raise. Of several processes, all call it, share the
    work and have all values. Raises UserError when there are no pictures, and for a model without
    likelihoods.
    """
    _require_pictures(model, tokens)
    compute = in_dtype(partial(objective, model), model, dtype)

    def nats(part: torch.Tensor, start: int) -> torch.Tensor:
        step, first = divmod(start, mask_batch or batch_size)
        rows = range(first, first + len(part))
        batch = Batch(tokens=part, labels=None, step=step, rows=rows)
        return compute(*objective.inputs(batch))

    # To the processor all at once: a copy of each batch would make an accelerator wait.
    return torch.cat(list(in_batches(tokens, nats, batch_size, check))).cpu()


def pixel_nats(
    model: ImageGPT,
    tokens: torch.Tensor,
    batch_size: int = BATCH,
    dtype: torch.dtype = torch.float32,
    check: Callable[[], None] | None = None,
) -> torch.Tensor:
    """-ln p of every token of the pictures `tokens` [N, T] in the model's order: nats, [N, T].

    Autoregressive: given the tokens before it, so that a picture's sum is its exact likelihood.
    BERT: a fixed random partition of the positions into groups, each hidden in a pass of its own;
    a token's value is from the pass that hid its group, given all others. The sum is then no
    likelihood of the picture but a pseudo-likelihood (Besag, 1975).

    Of several processes, all call it, as `picture_nats`. Raises UserError when there are no
    pictures, and for a model without likelihoods.
    """
    _require_pictures(model, tokens)
    if model.config.causal:
        compute = in_dtype(lambda part: token_nats(model(part), part), model, dtype)
        batches = in_batches(tokens, lambda part, _: compute(part), batch_size, check)
    else:
        compute = in_dtype(partial(_nats_in_turns, model), model, dtype)
        hidden = _hidden_in_turns(model.config)
        batches = in_batches(tokens, lambda part, _: compute(part, hidden), batch_size, check)
    return torch.cat([part.cpu() for part in batches])


def _require_pictures(model: ImageGPT, tokens: torch.Tensor) -> None:
    require_likelihood(model.config)
    if len(tokens) == 0:
        raise UserError("no pictures to evaluate")


def turns(config: ModelConfig) -> int:
    """In how many turns a BERT model's positions are hidden, so that it is asked what it learned:
    seven for the paper's 0.15, as a seventh is nearest to it. One position a turn at least.
    """
    return max(2, min(round(1 / config.mask_probability), config.n_positions))


def _hidden_in_turns(config: ModelConfig) -> torch.Tensor:
    """What each turn hides [turns, T]: each position once, and the same of every picture, so that
    its value does not depend on which others are in the set.
    """
    n_turns, n_tokens = turns(config), config.n_positions
    turn_of = torch.randperm(n_tokens, generator=torch_rng(0, "turns", n_tokens)) % n_turns  # [T]
    return turn_of == torch.arange(n_turns)[:, None]


def _nats_in_turns(model: ImageGPT, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`pixel_nats` of one batch [B, T] of a BERT model, from `_hidden_in_turns`."""
    nats = torch.zeros(tokens.shape, device=tokens.device)
    for turn in hidden:
        masked = turn.expand_as(tokens)  # [B, T]
        nats = torch.where(masked, token_nats(model(tokens, masked), tokens), nats)
    return nats
