"""Synthetic pictures of 32x32, seeded: what a palette is fitted on and encodes."""

from __future__ import annotations

import numpy as np

from igpt.rng import numpy_rng
from igpt.types import Pixels

SIZE = 32


def noise(n: int) -> Pixels:
    """Every look-up misses the cache."""
    rng = numpy_rng(0, "noise")
    return rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def photo_like(n: int) -> Pixels:
    """Between four corner colours of its own, each picture blends smoothly; then some noise."""
    rng = numpy_rng(0, "photo")
    corners = rng.uniform(0, 255, (n, 4, 3)).astype(np.float32)
    x = np.linspace(0, 1, SIZE, dtype=np.float32)
    right, down = x[None, :], x[:, None]
    weights = np.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down,
                        right * down], -1)  # [S, S, 4]  # fmt: skip
    pictures = weights @ corners[:, None]  # [n, S, S, 3]
    pictures += rng.standard_normal(pictures.shape, dtype=np.float32) * 8
    return pictures.clip(0, 255).astype(np.uint8)


def grey(n: int) -> Pixels:
    """Grey noise, of 256 colours."""
    rng = numpy_rng(0, "grey")
    return rng.integers(0, 256, (n, SIZE, SIZE, 1), dtype=np.uint8).repeat(3, axis=-1)


KINDS = {"noise": noise, "photo-like": photo_like, "grey": grey}
