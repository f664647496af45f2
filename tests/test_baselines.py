"""The baselines are distributions, and find what there is to find."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.baselines import STRENGTHS, context_nats, position_histogram_nats


def pictures(rng: np.random.Generator, n: int, size: int, k: int) -> np.ndarray:
    return rng.integers(0, k, (n, size * size))


def test_independent_uniform_pixels_cost_ln_k_under_both() -> None:
    rng = np.random.default_rng(0)
    train, held_out, test = (pictures(rng, n, 4, 3) for n in (3000, 500, 2000))
    assert position_histogram_nats(train, held_out, test, 3) == pytest.approx(math.log(3), abs=0.01)
    assert context_nats(train, held_out, test, 3, 4) == pytest.approx(math.log(3), abs=0.02)


def test_a_position_that_is_always_the_same_costs_next_to_nothing() -> None:
    rng = np.random.default_rng(0)
    always = np.tile(np.arange(16) % 5, (200, 1))
    assert position_histogram_nats(always, always[:50], always[:50], 5) < 0.001
    # Its neighbours do not tell: only where it is.
    noisy = np.where(rng.random(always.shape) < 0.5, always, rng.integers(0, 5, always.shape))
    assert position_histogram_nats(noisy, noisy[:50], noisy[:50], 5) > 0.8


def test_a_texture_that_follows_from_its_neighbours_costs_next_to_nothing() -> None:
    rng = np.random.default_rng(0)
    # Every pixel is the sum of its left and upper neighbour; the first row and column are random.
    grid = rng.integers(0, 4, (400, 8, 8))
    for y in range(1, 8):
        for x in range(1, 8):
            grid[:, y, x] = (grid[:, y, x - 1] + grid[:, y - 1, x]) % 4
    flat = grid.reshape(400, 64)
    nats = context_nats(flat[:300], flat[300:350], flat[350:], 4, 8)
    edge = 15 / 64 * math.log(4)  # what is random costs ln 4
    assert nats == pytest.approx(edge, abs=0.02)
    assert position_histogram_nats(flat[:300], flat[300:350], flat[350:], 4) > 1.3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(2, 4), context=st.booleans())
def test_the_probabilities_of_all_pictures_sum_to_one(seed: int, k: int, context: bool) -> None:
    rng = np.random.default_rng(seed)
    train, held_out = pictures(rng, 5, 2, k), pictures(rng, 3, 2, k)
    total = 0.0
    for pixels in np.ndindex(k, k, k, k):
        test = np.array([pixels])
        nats = (
            context_nats(train, held_out, test, k, 2)
            if context
            else position_histogram_nats(train, held_out, test, k)
        )
        total += math.exp(-4 * nats)
    assert total == pytest.approx(1)


def test_the_smoothing_is_chosen_on_validation_and_not_on_test() -> None:
    rng = np.random.default_rng(0)
    train = np.zeros((50, 4), int)
    plain, noise = np.zeros((20, 4), int), pictures(rng, 20, 2, 4)
    assert position_histogram_nats(train, plain, noise, 4) > position_histogram_nats(
        train, noise, noise, 4
    )
    assert list(STRENGTHS) == sorted(STRENGTHS)
