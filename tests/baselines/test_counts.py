"""The baselines are probabilities, and see what they should: a position, or two neighbours."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.baselines.counts import context_nats, position_histogram_nats

Tokens = npt.NDArray[np.integer]
Baseline = Callable[[Tokens, Tokens, Tokens], float]

K, SIZE = 3, 2


def position(train: Tokens, validation: Tokens, test: Tokens) -> float:
    return position_histogram_nats(train, validation, test, K)


def context(train: Tokens, validation: Tokens, test: Tokens) -> float:
    return context_nats(train, validation, test, K, SIZE)


BOTH = pytest.mark.parametrize("baseline", [position, context])


def draw(seed: int, n: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, K, (n, SIZE * SIZE)).astype(np.uint16)


@BOTH
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000), n=st.integers(1, 20))
def test_probabilities_of_all_pictures_sum_to_one(baseline: Baseline, seed: int, n: int) -> None:
    train, validation = draw(seed, n), draw(seed + 1, 3)
    pictures = np.array(list(itertools.product(range(K), repeat=SIZE * SIZE)))
    nats = [SIZE * SIZE * baseline(train, validation, picture[None]) for picture in pictures]
    assert sum(math.exp(-value) for value in nats) == pytest.approx(1, abs=1e-9)


@BOTH
def test_a_set_costs_the_mean_of_its_pictures(baseline: Baseline) -> None:
    train, validation, test = draw(0, 50), draw(1, 10), draw(2, 8)
    alone = [baseline(train, validation, picture[None]) for picture in test]
    assert baseline(train, validation, test) == pytest.approx(np.mean(alone))


@BOTH
def test_a_color_that_training_never_saw_is_possible(baseline: Baseline) -> None:
    train = np.zeros((5, SIZE * SIZE), np.uint16)
    unseen = np.full((1, SIZE * SIZE), K - 1, np.uint16)
    assert baseline(train, train, train) < baseline(train, train, unseen) < math.inf


def test_the_histogram_of_one_position_is_what_a_hand_counts() -> None:
    tokens = np.array([[0], [0], [0], [1]])
    strength = 0.01  # validation is training: the least smoothing is best
    prior = (3 + 1) / (4 + 2)
    expected = -math.log((3 + strength * prior) / (4 + strength))
    assert position_histogram_nats(tokens, tokens, tokens[:1], 2) == pytest.approx(expected)


def test_smoothing_is_as_strong_as_validation_asks() -> None:
    train, unlike = np.array([[0], [0], [0], [1]]), np.array([[1]])
    prior = (1 + 1) / (4 + 2)
    expected = -math.log((1 + 300 * prior) / (4 + 300))  # the strongest of the grid
    assert position_histogram_nats(train, unlike, unlike, 2) == pytest.approx(expected)


def test_positions_have_histograms_of_their_own() -> None:
    picture = np.array([[0, 1, 2, 0]])
    same = np.repeat(picture, 1000, axis=0)
    assert position(same, same, picture) < 1e-4


@pytest.mark.parametrize("axis", [1, 2], ids=["from above", "from the left"])
def test_a_texture_that_a_neighbour_decides_costs_only_its_edge(axis: int) -> None:
    size, k = 8, 5
    rng = np.random.default_rng(0)
    edge = rng.integers(0, k, (600, size))
    pictures = np.repeat(np.expand_dims(edge, axis), size, axis).reshape(600, -1)
    train, validation, test = pictures[:500], pictures[500:550], pictures[550:]
    nats = context_nats(train, validation, test, k, size)
    assert nats == pytest.approx(math.log(k) / size, abs=0.03)
    assert position_histogram_nats(train, validation, test, k) > math.log(k) - 0.05


def test_a_row_does_not_continue_the_row_before() -> None:
    # Were 2, the end of row one, the left neighbour of 3, then (left 2, above 0) would stand
    # before both 3 and 1; with an edge every pair of neighbours decides.
    picture = np.array([[0, 1, 2], [3, 0, 1], [2, 1, 3]]).reshape(1, 9)
    same = np.repeat(picture, 1000, axis=0)
    assert context_nats(same, same, picture, 4, 3) < 1e-4


def test_a_palette_of_512_colors_needs_no_dense_table_of_contexts() -> None:
    tokens = np.random.default_rng(0).integers(0, 512, (20, 64)).astype(np.uint16)
    tracemalloc.start()
    nats = context_nats(tokens, tokens[:5], tokens, 512, 8)
    _, peak = tracemalloc.get_traced_memory()  # bytes; numpy reports its arrays
    tracemalloc.stop()
    assert 0 < nats < math.log(512)
    assert peak < 20e6
