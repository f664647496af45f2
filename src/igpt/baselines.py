"""Two honest baselines for a model of pictures, on the same raster tokens and splits.

Both are counts with additive smoothing whose strength is chosen on validation data.
"""

from __future__ import annotations

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

    Outside the picture stands a colour of its own. A context that was never seen falls back on
    the colours' frequencies.
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
    train, validation, test = sets
    strength = min(STRENGTHS, key=lambda s: _nats(train, validation, k, s))
    return _nats(train, test, k, strength)


def _nats(train: Pairs, other: Pairs, k: int, strength: float) -> float:
    """Mean -ln p(colour | context), p = (count + strength * prior) / (total + strength).

    The prior is the colours' frequency in train, itself with one added to every count.
    """
    prior = np.bincount(train[1], minlength=k) + 1.0
    prior /= prior.sum()
    pairs, counts = np.unique(train[0] * k + train[1], return_counts=True)
    contexts, totals = np.unique(train[0], return_counts=True)
    context, color = other
    seen = _look_up(pairs, counts, context * k + color)
    total = _look_up(contexts, totals, context)
    return float(-np.log((seen + strength * prior[color]) / (total + strength)).mean())


def _look_up(
    keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """values at keys (sorted), 0 where a wanted key is absent."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
