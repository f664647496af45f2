"""Two honest baselines for a model of pictures, on the same raster tokens and splits.

Both are counts with additive smoothing whose strength is chosen on validation data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.integer]  # [N, H*W], raster

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def position_histogram_nats(train: Tokens, validation: Tokens, test: Tokens, k: int) -> float:
    """Nats a pixel on test of an independent histogram of the `k` colours at every position."""
    position = np.arange(train.shape[1])
    return _best_nats([_with_context(t, position[None]) for t in (train, validation, test)], k)


def context_nats(train: Tokens, validation: Tokens, test: Tokens, k: int, size: int) -> float:
    """Nats a pixel on test of p(x | left, upper neighbour) for pictures of `size` x `size`.

    A neighbour outside the picture has a colour of its own. A context that was never seen falls
    back on the colours' frequencies.
    """
    sets = [_with_context(t, _neighbours(t, k, size)) for t in (train, validation, test)]
    return _best_nats(sets, k)


def _neighbours(tokens: Tokens, k: int, size: int) -> npt.NDArray[np.int64]:
    """One number [N, H*W] for each pair of left and upper neighbour."""
    grid = tokens.reshape(-1, size, size).astype(np.int64)
    padded = np.pad(grid, ((0, 0), (1, 0), (1, 0)), constant_values=k)
    left, up = padded[:, 1:, :-1], padded[:, :-1, 1:]
    return (left * (k + 1) + up).reshape(len(tokens), -1)


Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # contexts and colours, flat


def _with_context(tokens: Tokens, context: npt.NDArray[np.int64]) -> Pairs:
    return np.broadcast_to(context, tokens.shape).ravel(), tokens.ravel().astype(np.int64)


def _best_nats(sets: list[Pairs], k: int) -> float:
    """Nats a pixel on the last set, with the strength that is best on the one before it."""
    counts = Counts.of(sets[0], k)
    held_out, test = (counts.look_up(pairs) for pairs in sets[1:])
    return _nats(test, min(STRENGTHS, key=lambda strength: _nats(held_out, strength)))


@dataclass(frozen=True)
class Counts:
    """How often colours follow contexts in train; only what occurs is stored."""

    k: int
    pairs: npt.NDArray[np.int64]  # context * k + colour, sorted
    pair_counts: npt.NDArray[np.int64]
    contexts: npt.NDArray[np.int64]  # sorted
    context_counts: npt.NDArray[np.int64]
    prior: npt.NDArray[np.float64]  # [k], the colours' frequency, with one added to every count

    @classmethod
    def of(cls, train: Pairs, k: int) -> Counts:
        context, color = train
        prior = np.bincount(color, minlength=k) + 1.0
        pairs, pair_counts = np.unique(context * k + color, return_counts=True)
        contexts, context_counts = np.unique(context, return_counts=True)
        return cls(k, pairs, pair_counts, contexts, context_counts, prior / prior.sum())

    def look_up(self, other: Pairs) -> tuple[npt.NDArray[Any], ...]:
        """For every pixel: how often its colour was seen in its context, and the context itself in
        train; and the prior of its colour.
        """
        context, color = other
        seen = _look_up(self.pairs, self.pair_counts, context * self.k + color)
        total = _look_up(self.contexts, self.context_counts, context)
        return seen, total, self.prior[color]


def _nats(found: tuple[npt.NDArray[Any], ...], strength: float) -> float:
    """Mean -ln p(colour | context), p = (seen + strength * prior) / (total + strength)."""
    seen, total, prior = found
    return float(-np.log((seen + strength * prior) / (total + strength)).mean())


def _look_up(
    keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """`values` at the `wanted` ones of the sorted `keys`; 0 for one that is absent."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
