"""Augmentation by moving tokens, and batches addressed by step."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import picture_bytes, write_classes
from igpt.config import UserError
from igpt.data.augment import augmented_view, imagenet_crop, move_pixels, move_tokens
from igpt.data.decode import fit_square, imagenet_centre
from igpt.data.loader import Batch, PictureLoader, TokenLoader, prefetch
from igpt.data.pictures import open_files
from igpt.data.sources import open_source
from igpt.order import Codec
from igpt.palette import Palette
from igpt.rng import numpy_rng

GREYS = Palette(np.linspace(-1, 1, 256, dtype=np.float32)[:, None].repeat(3, 1))


def numbered(n: int, size: int = 2) -> np.ndarray:
    """n pictures of one token each: its number."""
    return np.arange(n, dtype=np.uint16)[:, None].repeat(size * size, 1)


def loader(n: int, batch_size: int, augmentation: str = "none", size: int = 2) -> TokenLoader:
    codec = Codec(GREYS, "raster", size)
    return TokenLoader(numbered(n, size), np.arange(n), codec, batch_size, 3, augmentation)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_every_epoch_visits_every_picture_once(n: int, batch_size: int) -> None:
    batches = loader(n, batch_size)
    steps = -(-3 * n // batch_size)
    seen = np.concatenate(
        [batches.batch(step, range(batch_size)).tokens[:, 0].numpy() for step in range(steps)]
    )
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_every_epoch_has_an_order_of_its_own() -> None:
    def epoch(number: int, seed: int = 3) -> tuple[int, ...]:
        batches = TokenLoader(numbered(40), None, Codec(GREYS, "raster", 2), 40, seed, "none")
        return tuple(batches.batch(number, range(40)).tokens[:, 0].tolist())

    assert len({tuple(range(40)), epoch(0), epoch(1), epoch(0, seed=4)}) == 4


@pytest.mark.filterwarnings("ignore:skipped")
def test_what_replaces_an_unreadable_picture_brings_its_own_label(tmp_path: Path) -> None:
    dark = write_classes(tmp_path, 24, 0) / "train" / "dark"
    for path in sorted(dark.iterdir())[:8]:
        path.write_bytes(b"")
    pictures, view = open_source(str(tmp_path)).split("train"), augmented_view("none", fit_square)
    batches = PictureLoader(pictures, Codec(GREYS, "raster", 4), 24, 0, view)
    batch = batches.batch(0, range(24))  # an epoch, so that all eight are met
    assert len(batches.skipped) == 8
    assert batch.labels is not None
    assert (batch.tokens.float().mean(dim=1) > 127).equal(batch.labels == 1)


@settings(max_examples=20, deadline=None)
@given(
    step=st.integers(0, 50), cut=st.integers(1, 6), augmentation=st.sampled_from(["flip", "cifar"])
)
def test_a_batch_is_a_function_of_its_step_and_can_be_shared_out(
    step: int, cut: int, augmentation: str
) -> None:
    codec = Codec(GREYS, "hilbert", 6)
    tokens = np.random.default_rng(0).integers(0, 9, (10, 36)).astype(np.uint16)
    batches = TokenLoader(tokens, np.arange(10), codec, 7, 3, augmentation)
    batches.batch(step + 1, range(7))
    whole = batches.batch(step, range(7))
    again = TokenLoader(tokens, np.arange(10), codec, 7, 3, augmentation).batch(step, range(7))
    assert whole.tokens.equal(again.tokens)
    first, rest = batches.batch(step, range(cut)), batches.batch(step, range(cut, 7))
    assert whole.tokens.equal(
        first.tokens.new_tensor([*first.tokens.tolist(), *rest.tokens.tolist()])
    )
    assert whole.labels is not None
    assert first.labels is not None
    assert whole.labels[:cut].equal(first.labels)


def test_tokens_and_labels_stay_together() -> None:
    batch = loader(30, 8).batch(5, range(8))
    assert batch.labels is not None
    assert batch.tokens[:, 0].equal(batch.labels)


def test_prefetching_gives_the_same_batches_in_order() -> None:
    batches = loader(11, 4)
    got = [coming.result() for coming in prefetch(batches, range(3, 9), range(4))]
    assert [batch.step for batch in got] == list(range(3, 9))
    assert all(batch.tokens.equal(batches.batch(batch.step, range(4)).tokens) for batch in got)


class WatchedLoader(TokenLoader):
    """Tells which batches are begun, and makes none before it may."""

    def __init__(self) -> None:
        super().__init__(numbered(11), None, Codec(GREYS, "raster", 2), 4, 3, "none")
        self.begun, self.may = ([threading.Event() for _ in range(9)] for _ in range(2))

    def batch(self, step: int, rows: range) -> Batch:
        self.begun[step].set()
        assert self.may[step].wait(10)
        return super().batch(step, rows)


def test_the_next_batch_is_made_while_the_last_is_used() -> None:
    watched = WatchedLoader()
    batches = prefetch(watched, range(3, 9), range(4))
    watched.may[3].set()
    assert next(batches).result(10).step == 3
    assert watched.begun[4].wait(10)  # nobody asked for it yet
    coming = next(batches)  # who takes it need not wait
    assert not coming.done()
    assert not watched.begun[5].wait(0.05)  # one at a time
    for event in watched.may:
        event.set()
    assert coming.result(10).step == 4
    assert [later.result(10).step for later in batches] == list(range(5, 9))


@pytest.mark.parametrize("augmentation", ["none", "flip", "cifar"])
def test_moving_tokens_is_moving_pixels(augmentation: str) -> None:
    """Encode then augment equals augment then encode, since both only move pixels."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    palette = Palette.fit(images, 16)
    moved = move_pixels(images, augmentation, numpy_rng(1, "test"))
    tokens = move_tokens(palette.encode(images), 8, augmentation, numpy_rng(1, "test"))
    assert np.array_equal(palette.encode(moved), tokens)


def test_a_picture_is_seen_anew_at_every_step(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture_bytes(0, (20, 16)))
    codec, tokens = Codec(GREYS, "raster", 8), np.arange(64, dtype=np.uint16)[None]
    for batches in (
        TokenLoader(tokens, None, codec, 1, 3, "cifar"),
        PictureLoader(open_files([tmp_path]), codec, 1, 3, imagenet_crop),
    ):
        seen = {tuple(batches.batch(step, range(1)).tokens[0].tolist()) for step in range(12)}
        assert len(seen) > 6


def test_flip_mirrors_about_half_and_cifar_shifts_by_up_to_four() -> None:
    picture = np.arange(64, dtype=np.uint16)[None].repeat(400, 0)
    flipped = move_tokens(picture, 8, "flip", numpy_rng(0)).reshape(400, 8, 8)
    mirrored = (flipped == picture.reshape(400, 8, 8)[:, :, ::-1]).all((1, 2))
    assert 150 < mirrored.sum() < 250
    assert (flipped[~mirrored] == picture.reshape(400, 8, 8)[0]).all()
    moved = move_tokens(picture, 8, "cifar", numpy_rng(0)).reshape(400, 8, 8)
    padded = np.pad(np.arange(64).reshape(8, 8), 4, mode="reflect")
    mirror = np.pad(np.arange(64).reshape(8, 8)[:, ::-1], 4, mode="reflect")
    windows = {
        tuple(p[i : i + 8, j : j + 8].ravel())
        for p in (padded, mirror)
        for i in range(9)
        for j in range(9)
    }
    found = {tuple(row.ravel()) for row in moved}
    assert found <= windows
    assert len(found) > 100


def test_a_view_is_a_crop_or_the_fitted_picture_moved() -> None:
    image = Image.open(io.BytesIO(picture_bytes(0, (20, 16))))
    crop = augmented_view("imagenet", fit_square)(image, 8, numpy_rng(1))
    assert np.array_equal(crop, imagenet_crop(image, 8, numpy_rng(1)))
    for fit in (fit_square, imagenet_centre):
        fitted = fit(image, 8)
        assert np.array_equal(augmented_view("none", fit)(image, 8, numpy_rng(0)), fitted)
        flip = augmented_view("flip", fit)
        seen = {flip(image, 8, numpy_rng(0, i)).tobytes() for i in range(20)}
        assert seen == {fitted.tobytes(), fitted[:, ::-1].tobytes()}


@pytest.mark.filterwarnings("ignore:skipped")
def test_an_unreadable_picture_is_replaced_the_same_way_each_time(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture_bytes(i))
    (tmp_path / "2.png").write_bytes(b"")
    codec = Codec(GREYS, "raster", 4)
    crops = PictureLoader(open_files([tmp_path]), codec, 6, 0, imagenet_crop)
    batch = crops.batch(0, range(6))
    assert batch.tokens.shape == (6, 16)
    (skipped,) = crops.skipped
    assert skipped.endswith("2.png: not a picture")
    again = PictureLoader(open_files([tmp_path]), codec, 6, 0, imagenet_crop)
    assert again.batch(0, range(6)).tokens.equal(batch.tokens)
    assert crops.batch(0, range(2, 4)).tokens.equal(batch.tokens[2:4])


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_set_without_a_readable_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "2.png").write_bytes(b"")
    codec = Codec(GREYS, "raster", 4)
    loader = PictureLoader(open_files([tmp_path]), codec, 2, 0, imagenet_crop)
    with pytest.raises(UserError, match="in a row cannot be read"):
        loader.batch(0, range(2))
