"""Likelihood as a signal: every pixel's nats, compressed sizes, and two sets told apart."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import igpt
from igpt.config import ModelConfig, UserError
from igpt.data.decode import decode_all
from igpt.data.sources import open_source
from igpt.evaluate import picture_nats, pixel_nats, turns
from igpt.model import ImageGPT
from igpt.objectives import AR, token_nats
from igpt.order import ORDERS, Codec
from igpt.palette import Palette
from igpt.plots.scores import extremes_sheet, surprise_sheet
from igpt.plots.sheets import CELL, GUTTER, MARGIN, TITLE
from igpt.score import Scores, Signal, compressed_bits, out_of_distribution, score
from test_model import AR as AR_CONFIG
from test_model import BERT as BERT_CONFIG
from test_model import random_model

Pixels = npt.NDArray[np.uint8]


def random_tokens(n: int, length: int = 9) -> torch.Tensor:
    return torch.randint(11, (n, length), generator=torch.Generator().manual_seed(0))


# --- every pixel's nats --------------------------------------------------------------------------


def test_the_mean_of_the_pixels_nats_is_the_pictures() -> None:
    model, tokens = random_model(AR_CONFIG), random_tokens(7)
    nats = pixel_nats(model, tokens, batch_size=3)
    assert nats.shape == (7, 9)
    torch.testing.assert_close(nats.mean(dim=1), picture_nats(model, AR(), tokens, 3))


def test_a_pixels_nats_depend_on_those_before_it_only() -> None:
    model, tokens = random_model(AR_CONFIG), random_tokens(1)
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 11
    moved = (pixel_nats(model, tokens, 1) - pixel_nats(model, changed, 1)).abs()[0] > 1e-7
    assert moved.tolist() == [i >= 5 for i in range(9)]


def test_bert_hides_every_position_once_and_in_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden: list[torch.Tensor] = []
    config = ModelConfig(2, 2, 16, vocab_size=11, n_positions=64, causal=False)
    model, tokens = random_model(config), random_tokens(2, 64)
    forward = ImageGPT.forward

    def recording(
        self: ImageGPT, tokens: torch.Tensor, masked: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert masked is not None
        hidden.append(masked)
        return forward(self, tokens, masked)

    monkeypatch.setattr(ImageGPT, "forward", recording)
    nats = pixel_nats(model, tokens, batch_size=2)
    n_turns = turns(model.config)
    assert len(hidden) == n_turns == 7
    assert turns(replace(model.config, mask_probability=0.5)) == 2
    assert turns(replace(model.config, mask_probability=0.0005)) == 64
    assert torch.equal(torch.stack(hidden).sum(dim=0), torch.ones(2, 64, dtype=torch.long))
    assert {int(mask[0].sum()) for mask in hidden} <= {64 // n_turns, 64 // n_turns + 1}
    for masked in hidden:
        with torch.inference_mode():
            expected = token_nats(forward(model, tokens, masked), tokens)[masked]
        torch.testing.assert_close(nats[masked], expected)


def test_bert_predicts_a_pixel_without_knowing_it() -> None:
    """Over the eleven colours of one pixel, its own probabilities sum to one: the logits that they
    come from are the same whatever the colour is."""
    model, tokens = random_model(BERT_CONFIG), random_tokens(1)
    for place in range(9):
        every = tokens.repeat(11, 1)
        every[:, place] = torch.arange(11)
        nats = pixel_nats(model, every, batch_size=4)
        assert torch.exp(-nats[:, place]).sum().item() == pytest.approx(1, abs=1e-5)
        assert nats.std(dim=0).count_nonzero() > 1  # the others do see it


def test_a_bert_pictures_nats_do_not_depend_on_its_place_in_the_set() -> None:
    model, tokens = random_model(BERT_CONFIG), random_tokens(5)
    whole = pixel_nats(model, tokens, batch_size=4)
    torch.testing.assert_close(pixel_nats(model, tokens[3:], batch_size=1), whole[3:])


@pytest.mark.parametrize("config", [AR_CONFIG, BERT_CONFIG])
def test_no_pictures_are_refused(config: ModelConfig) -> None:
    with pytest.raises(UserError, match="no pictures"):
        pixel_nats(random_model(config), random_tokens(0), 4)


# --- surprise at its place -----------------------------------------------------------------------


def pipeline(order: str = "raster", size: int = 4) -> igpt.Pipeline:
    """A random model of eleven greys that reads in `order`."""
    greys = np.linspace(-1, 1, 11, dtype=np.float32)[:, None].repeat(3, axis=1)
    config = ModelConfig(2, 2, 16, vocab_size=11, n_positions=size * size)
    return igpt.Pipeline(random_model(config), Codec(Palette(greys), order, size))


def noise(n: int, size: int = 4, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("order", ORDERS)
def test_the_surprise_of_a_pixel_stands_at_the_pixel(order: str) -> None:
    p = pipeline(order)
    images = noise(3)
    nats = pixel_nats(p.model, p.tokens(images), 32).numpy()  # [B, T], in the model's order
    surprise = p.surprise(images)
    assert surprise.shape == (3, 4, 4)
    for i, place in enumerate(p.codec.pi):
        assert np.array_equal(surprise[:, place // 4, place % 4], nats[:, i])


@pytest.mark.parametrize("order", ["column", "hilbert"])
def test_changing_a_pixel_moves_the_surprise_there_and_after_it(order: str) -> None:
    p = pipeline(order)
    dark = np.zeros((1, 4, 4, 3), np.uint8)
    changed = dark.copy()
    y, x = divmod(int(p.codec.pi[9]), 4)
    changed[0, y, x] = 255
    moved = np.abs(p.surprise(changed) - p.surprise(dark))[0] > 1e-7
    later = np.zeros(16, bool)
    later[p.codec.pi[9:]] = True
    assert np.array_equal(moved, later.reshape(4, 4))


# --- scores of a set -----------------------------------------------------------------------------


def test_scores_are_the_mean_surprise_and_rank_the_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("igpt.score.CHUNK", 3)  # two whole parts and a rest
    p, images = pipeline(), noise(7)
    scores = score(p, images, list("abcdefg"))
    np.testing.assert_allclose(scores.nats_per_pixel, p.nll(images), rtol=1e-6)
    np.testing.assert_allclose(scores.bits_per_pixel * math.log(2), scores.nats_per_pixel)
    quantized = compressed_bits(p.quantize(images))
    assert np.array_equal(scores.compressed_bits_per_pixel, quantized)
    assert np.all(np.diff(scores.nats_per_pixel[scores.ranking]) >= 0)


def test_the_compressed_size_is_that_of_the_smallest_lossless_file() -> None:
    plain = np.full((1, 32, 32, 3), 200, np.uint8)
    images = np.concatenate([plain, noise(1, 32)])
    bits = compressed_bits(images)
    assert bits.shape == (2,)
    assert bits[0] < 1 < 24 <= bits[1]  # random colours cannot be compressed
    for image, expected in zip(images, bits, strict=True):
        for options in ({"format": "PNG"}, {"format": "WEBP", "lossless": True}):
            file = io.BytesIO()
            Image.fromarray(image).save(file, **options)
            assert expected <= 8 * file.tell() / 32**2


def test_grey_is_compressed_as_grey() -> None:
    grey = noise(1, 32)[..., :1].repeat(3, axis=-1)
    assert 8 <= compressed_bits(grey)[0] < 9


def test_auroc_is_the_chance_of_the_right_order() -> None:
    low, high = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])
    assert Signal(low, high).auroc == 1
    assert Signal(high, low).auroc == 0
    assert Signal(low, low).auroc == 0.5
    assert Signal(np.array([1.0, 3.0]), np.array([2.0, 4.0])).auroc == 0.75


def test_the_standard_error_is_how_far_auroc_strays_over_samples() -> None:
    rng = np.random.default_rng(0)
    # Rounded, so that some are equal.
    signals = [
        Signal(rng.normal(0, 1, 40).round(1), rng.normal(1, 2, 70).round(1)) for _ in range(400)
    ]
    strays = np.std([signal.auroc for signal in signals])
    errors = [signal.standard_error for signal in signals]
    assert np.mean([error for error in errors if error]) == pytest.approx(strays, rel=0.1)
    assert Signal(np.array([1.0]), np.array([2.0, 3.0])).standard_error is None


def test_the_correction_rights_a_likelihood_that_follows_complexity() -> None:
    """A model whose bits are half of the compressor's on its own pictures, and equal to them on
    simpler foreign ones: raw likelihood prefers the foreign ones, always."""
    own, foreign = np.array([6.0, 7.0, 8.0]), np.array([1.0, 2.0])  # bits/pixel, compressed
    inside = Scores(list("abc"), own / 2 * math.log(2), own)
    outside = Scores(list("de"), foreign * math.log(2), foreign)
    raw, corrected = out_of_distribution(inside, outside)
    assert raw.auroc == 0
    assert corrected.auroc == 1
    np.testing.assert_allclose(corrected.inside, -own / 2)
    np.testing.assert_allclose(corrected.outside, 0, atol=1e-12)


def test_a_trained_model_is_less_surprised_by_digits_than_by_noise(tiny_run: Path) -> None:
    p = igpt.load(tiny_run)
    digits = decode_all(open_source("digits").split("test"), 8).images[:40]
    inside = score(p, digits, [""] * 40)
    outside = score(p, noise(40, 8), [""] * 40)
    raw, _ = out_of_distribution(inside, outside)
    assert raw.auroc > 0.9


# --- figures -------------------------------------------------------------------------------------


def cell(sheet: Image.Image, row: int, column: int) -> Pixels:
    """The enlarged picture [CELL, CELL, 3] at a place of a sheet with titles."""
    x, y = MARGIN + column * (CELL + GUTTER), MARGIN + TITLE + row * (CELL + GUTTER)
    return np.asarray(sheet)[y : y + CELL, x : x + CELL]


def test_a_surprise_sheet_shows_each_picture_and_lights_where_it_surprises() -> None:
    pictures = noise(3, 8)
    nats = np.zeros((3, 8, 8), np.float32)
    nats[1, 2, 5] = 9
    sheet = surprise_sheet(pictures, nats)
    places = [(0, 0), (0, 2), (1, 0)]
    for picture, (row, column) in zip(pictures, places, strict=True):
        enlarged = picture.repeat(CELL // 8, 0).repeat(CELL // 8, 1)
        assert np.array_equal(cell(sheet, row, column), enlarged)
    step = CELL // 8
    for row, column in places:
        small = cell(sheet, row, column + 1)[step // 2 :: step, step // 2 :: step]  # [8, 8, 3]
        bright = small.mean(axis=-1) > 150
        expected = np.zeros((8, 8), bool)
        expected[2, 5] = (row, column) == (0, 2)
        assert np.array_equal(bright, expected)
        grey = small[~bright]
        assert np.all(grey == grey[:, :1])  # elsewhere the picture, dimmed


def test_one_picture_makes_a_sheet_of_one_pair() -> None:
    one = surprise_sheet(noise(1, 8), np.ones((1, 8, 8), np.float32))
    two = surprise_sheet(noise(2, 8), np.ones((2, 8, 8), np.float32))
    assert two.width - one.width == 2 * (CELL + GUTTER)


def test_an_extremes_sheet_has_the_likely_above_the_unlikely_with_a_number_below_each() -> None:
    likely, unlikely = noise(3, 8, seed=1), noise(3, 8, seed=2)
    sheet = extremes_sheet(likely, np.array([1.0, 2, 3]), unlikely, np.array([9.0, 8, 7]))
    pixels, half = np.asarray(sheet), sheet.height // 2
    for y, pictures in ((0, likely), (half, unlikely)):
        part = Image.fromarray(pixels[y : y + half])
        for i, picture in enumerate(pictures):
            enlarged = picture.repeat(CELL // 8, 0).repeat(CELL // 8, 1)
            assert np.array_equal(cell(part, 0, i), enlarged)
            x, below = MARGIN + i * (CELL + GUTTER), MARGIN + TITLE + CELL
            caption = np.asarray(part)[below:, x : x + CELL]
            assert (caption < 150).any()
