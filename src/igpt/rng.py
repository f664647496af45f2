"""Randomness as a function of (seed, step, row), so that a run needs only the step to resume.

Every random draw of training (order of pictures, augmentation, masks) names what it is for and when
it happens, and gets a generator of its own. Nothing is consumed from a shared stream, so a resumed
run, or one on another number of processes, draws the same numbers.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _sequence(seed: int, keys: tuple[int | str, ...]) -> np.random.SeedSequence:
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    return np.random.SeedSequence([seed, *words])


def numpy_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """A numpy generator that depends only on `seed` and `keys` (non-negative ints and names)."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, keys)))


def torch_rng(seed: int, *keys: int | str) -> torch.Generator:
    """As `numpy_rng`, for torch; on the CPU, so that every device sees the same draws."""
    import torch

    state = _sequence(seed, keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
