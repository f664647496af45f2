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


Ints = npt.NDArray[np.int64]
Pairs = tuple[Ints, Ints]  # contexts and colours, flat
# For each pixel: how often train has its colour in its context, and the context; its colour's prior
Found = tuple[Ints, Ints, npt.NDArray[np.float64]]


def _with_context(tokens: Tokens, context: npt.NDArray[np.int64]) -> Pairs:
    return np.broadcast_to(context, tokens.shape).ravel(), tokens.ravel().astype(np.int64)


def _best_nats(sets: list[Pairs], k: int) -> float:
    """Nats a pixel on the last set, with the strength that is best on the one before it."""
    contexts, colors = sets[0]
    pair_counts = np.unique(contexts * k + colors, return_counts=True)  # only what occurs is stored
    context_counts = np.unique(contexts, return_counts=True)
    color_counts = np.bincount(colors, minlength=k) + 1.0
    prior = color_counts / color_counts.sum()

    def found(contexts: Ints, colors: Ints) -> Found:
        seen = _look_up(pair_counts, contexts * k + colors)
        return seen, _look_up(context_counts, contexts), prior[colors]

    held_out, test = (found(*pairs) for pairs in sets[1:])
    return _nats(test, min(STRENGTHS, key=lambda strength: _nats(held_out, strength)))


def _nats(found: Found, strength: float) -> float:
    """Mean -ln p(colour | context), p = (seen + strength * prior) / (total + strength)."""
    seen, total, prior = found
    return float(-np.log((seen + strength * prior) / (total + strength)).mean())


def _look_up(counts: tuple[Ints, Ints], wanted: Ints) -> Ints:
    """How often the `wanted` keys occur, by the sorted keys and their counts."""
    keys, values = counts
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
