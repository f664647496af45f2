"""The permutation of the pixels, and the codec."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.config import DataConfig, UserError
from igpt.data.loader import epoch_order
from igpt.data.sources import open_source
from igpt.data.splits import training_splits
from igpt.order import ORDERS, Codec, inverse, permutation
from igpt.palette import Palette
from igpt.rng import torch_rng

orders = st.sampled_from([*ORDERS, "random:7"])


@settings(max_examples=60, deadline=None)
@given(order=orders, size=st.integers(1, 33))
def test_an_order_visits_every_pixel_once_and_its_inverse_undoes_it(order: str, size: int) -> None:
    pi = permutation(order, size)
    assert np.array_equal(np.sort(pi), np.arange(size * size))
    assert np.array_equal(inverse(pi)[pi], np.arange(size * size))
    assert np.array_equal(pi[inverse(pi)], np.arange(size * size))


@settings(max_examples=40, deadline=None)
@given(order=st.sampled_from(["snake", "hilbert"]), size=st.integers(2, 33))
def test_snake_and_hilbert_step_to_a_neighbour(order: str, size: int) -> None:
    y, x = np.divmod(permutation(order, size), size)
    assert np.array_equal(np.abs(np.diff(y)) + np.abs(np.diff(x)), np.ones(size * size - 1))


def test_the_orders_of_a_small_picture() -> None:
    assert permutation("raster", 2).tolist() == [0, 1, 2, 3]
    assert permutation("column", 2).tolist() == [0, 2, 1, 3]
    assert permutation("snake", 3).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert sorted(permutation("hilbert", 4)[:4]) == [0, 1, 4, 5]


def test_random_orders_are_seeded() -> None:
    assert np.array_equal(permutation("random", 8), permutation("random:0", 8))
    assert not np.array_equal(permutation("random:1", 8), permutation("random:2", 8))


@pytest.mark.parametrize("name", ["spiral", "random:x", "random:", "raster:1", ""])
def test_an_unknown_order_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(UserError, match="raster, column, snake, hilbert"):
        permutation(name, 4)


@settings(max_examples=30, deadline=None)
@given(order=orders, size=st.integers(1, 9), seed=st.integers(0, 1000))
def test_the_codec_gives_back_pictures_of_the_palettes_colours(
    order: str, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (9, 3))
    palette = Palette((colors / 127.5 - 1).astype(np.float32))
    codec = Codec(palette, order, size)
    images = colors[rng.integers(0, 9, (2, size, size))].astype(np.uint8)
    tokens = codec.encode(images)
    assert np.array_equal(codec.decode(tokens), images)
    assert np.array_equal(tokens[:, 0], palette.encode(images)[:, codec.pi[0]])


def test_a_picture_of_another_size_is_refused() -> None:
    codec = Codec(Palette(np.zeros((1, 3), np.float32)), "raster", 4)
    with pytest.raises(UserError, match="4x4"):
        codec.encode(np.zeros((1, 5, 4, 3), np.uint8))


def test_tokens_of_another_number_are_refused() -> None:
    codec = Codec(Palette(np.zeros((1, 3), np.float32)), "hilbert", 4)
    with pytest.raises(UserError, match=r"tokens must be \[B, 16\], got \[2, 15\]"):
        codec.decode(np.zeros((2, 15), np.int64))


def test_what_runs_do_not_save_but_draw_anew_stays_what_it_is() -> None:
    """Else a run of an earlier version would be tested on what it learned from."""
    hilbert = [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]
    assert permutation("hilbert", 4).tolist() == hilbert
    assert permutation("random:7", 3).tolist() == [2, 8, 1, 7, 0, 5, 4, 6, 3]
    assert epoch_order(9, 3, 1).tolist() == [2, 6, 7, 3, 1, 0, 5, 4, 8]
    digits = open_source("digits")
    labels = digits.split("test").labels
    assert labels is not None
    assert labels[:9].tolist() == [0, 4, 1, 0, 3, 5, 3, 5, 3]
    _, held_out = training_splits(digits, DataConfig(), seed=3)
    assert [held_out.name(i) for i in range(3)] == [f"digits/train[{i}]" for i in (8, 18, 30)]
    turns = torch.randperm(9, generator=torch_rng(0, "turns", 9))
    assert turns.tolist() == [5, 2, 1, 6, 4, 0, 8, 7, 3]
