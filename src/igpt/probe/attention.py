"""An attentive probe: learned queries pool the positions of a frozen layer, then a linear layer.

As in AIM (El-Nouby et al., 2024): features are standardised, keys and values are linear in them,
each head has one learned query, and nothing of the model itself is trained.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.probe.features import Features
from igpt.probe.linear import metric_value
from igpt.rng import numpy_rng, torch_rng
from igpt.types import Labels

HEAD_WIDTH = 32  # of each query, or the whole width where that is no multiple of it
# AdamW over small sets: the best of the validations is kept, so too many steps do no harm.
STEPS, BATCH, RATE, WEIGHT_DECAY, VALIDATIONS = 1000, 128, 5e-3, 0.1, 20


class AttentionHead(nn.Module):
    """Classes [B, C] of a layer's positions n^l [B, T, d]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        n_head = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.query = nn.Parameter(torch.zeros(n_head, width // n_head))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, n_classes)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Uniform attention and even classes at first."""
        for layer in (self.key, self.value):
            layer.weight.normal_(std=1 / math.sqrt(len(layer.weight)), generator=generator)
        self.query.normal_(std=0.02, generator=generator)
        self.out.weight.zero_()
        self.out.bias.zero_()

    def forward(self, n: Tensor) -> Tensor:
        n = (n - self.mean) / self.scale
        n_head, width = self.query.shape
        key, value = (layer.weight.view(n_head, width, -1) for layer in (self.key, self.value))
        # A key meets one query and values are averaged, so that no position needs its own.
        scores = n @ torch.einsum("hwd,hw->dh", key, self.query) / math.sqrt(width)  # [B, T, H]
        seen = scores.softmax(dim=1).transpose(1, 2) @ n  # [B, H, d]
        pooled = torch.einsum("bhd,hwd->bhw", seen, value)
        return self.out(pooled.flatten(1))

    @torch.inference_mode()
    def logits(self, features: Features) -> Features:
        """[N, C] of flattened positions [N, T * d]."""
        positions = _positions(features, len(self.mean))
        out = [self(part) for part in torch.split(positions, BATCH)]
        return torch.cat(out).numpy()

    def predict(self, features: Features) -> Labels:
        """The most likely class [N] of flattened positions [N, T * d]."""
        return self.logits(features).argmax(axis=1)


def _positions(features: Features, width: int) -> Tensor:
    """[N, T, d] of flattened positions [N, T * d]."""
    return torch.from_numpy(features).view(len(features), -1, width)


def fit_attention(
    train: Features,
    labels: Labels,
    validation: Features,
    validation_labels: Labels,
    *,
    width: int,
    n_classes: int,
    metric: str,
    seed: int,
) -> tuple[AttentionHead, float]:
    """The head that validation liked best on the way, and the metric there.

    `train` [N, T * d] and `validation` are flattened positions of width d.
    """
    head = AttentionHead(width, n_classes)
    head.init_weights(torch_rng(seed, "attention"))
    positions = _positions(train, width)
    head.mean.copy_(positions.mean(dim=(0, 1)))
    head.scale.copy_(positions.std(dim=(0, 1)).clamp(min=1e-6))
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    rng, best, kept = numpy_rng(seed, "attention"), -1.0, head.state_dict()
    for step in range(1, STEPS + 1):
        rows = rng.integers(0, len(labels), min(BATCH, len(labels)))
        loss = F.cross_entropy(head(positions[rows]), torch.from_numpy(labels[rows]))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % (STEPS // VALIDATIONS) == 0:
            value = metric_value(metric, validation_labels, head.predict(validation))
            if value > best:
                best, kept = value, {k: v.clone() for k, v in head.state_dict().items()}
    head.load_state_dict(kept)
    return head, best
