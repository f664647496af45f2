"""Exact likelihood of a set of pictures: every picture counted once, none padded or dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from igpt.data import Batch
from igpt.device import autocast
from igpt.model import ImageGPT
from igpt.objectives import Objective


@dataclass(frozen=True)
class Likelihood:
    """Totals over a set of pictures, from which every reported unit follows."""

    nats: float  # sum over pictures of the mean nats per predicted pixel
    count: int  # pictures
    n_pixels: int  # of one picture

    @property
    def nats_per_pixel(self) -> float:
        return self.nats / self.count

    @property
    def bits_per_pixel(self) -> float:
        return self.nats_per_pixel / math.log(2)

    @property
    def nats_per_picture(self) -> float:
        return self.nats_per_pixel * self.n_pixels


@torch.inference_mode()
def picture_nats(
    model: ImageGPT,
    objective: Objective,
    tokens: torch.Tensor,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The objective of each of the pictures `tokens` [N, T] in the model's order: nats/pixel, [N].

    Raises ValueError when there are no pictures.
    """
    if len(tokens) == 0:
        raise ValueError("no pictures to evaluate")
    device = model.wte.device
    values = []
    for step, start in enumerate(range(0, len(tokens), batch_size)):
        part = tokens[start : start + batch_size].to(device)
        batch = Batch(tokens=part, labels=None, step=step, rows=range(len(part)))
        with autocast(device, dtype):
            values.append(objective(model, *objective.inputs(batch)))
    return torch.cat(values).cpu()


def likelihood(
    model: ImageGPT,
    objective: Objective,
    tokens: torch.Tensor,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> Likelihood:
    """Totals of `picture_nats`, summed in float64."""
    nats = picture_nats(model, objective, tokens, batch_size, dtype)
    return Likelihood(float(nats.double().sum()), len(tokens), tokens.shape[1])
