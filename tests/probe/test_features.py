"""Features: n^l of the layers, pooled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from igpt.config import ModelConfig, UserError
from igpt.evaluate import in_batches
from igpt.model import ImageGPT
from igpt.order import ORDERS, Codec
from igpt.palette import Palette
from igpt.probe.features import extract, make_pool, parse_layers, trunk_inputs
from test_model import random_model

CONFIG = ModelConfig(n_layer=3, n_head=2, n_embd=8, vocab_size=11, n_positions=36)
BERT = ModelConfig(n_layer=3, n_head=2, n_embd=8, vocab_size=11, n_positions=36, causal=False)


def codec(order: str = "raster") -> Codec:
    rng = np.random.default_rng(0)
    return Codec(Palette(rng.uniform(-1, 1, (11, 3)).astype(np.float32)), order, 6)


def tokens(n: int = 5) -> torch.Tensor:
    return torch.randint(11, (n, 36), generator=torch.Generator().manual_seed(0))


def test_layers_are_the_normalised_inputs_of_the_blocks_and_at_last_the_trunk() -> None:
    model = random_model(CONFIG)
    layers = list(model.features(tokens()))
    assert len(layers) == CONFIG.n_layer + 1
    seen = []
    for block in model.blocks:
        block.ln_1.register_forward_hook(lambda _m, _i, out: seen.append(out))
    trunk = model.trunk(tokens())
    for n, expected in zip(layers, [*seen, trunk], strict=True):
        assert torch.equal(n, expected)


def test_all_layers_come_from_one_pass_and_nothing_above_the_asked_one_is_computed() -> None:
    model = random_model(CONFIG)
    calls = []
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_a, layer=layer: calls.append(layer))
    list(extract(model, tokens(), [0, 1], make_pool("mean", codec())))
    assert calls == [0]
    calls.clear()
    list(extract(model, tokens(), [0, 1, 2, 3], make_pool("mean", codec())))
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("order", [*ORDERS, "random:3"])
def test_regions_keep_their_places_whatever_the_order(order: str) -> None:
    c = codec(order)
    raster = torch.arange(36.0)[None, :, None].repeat(1, 1, 2)  # n [1, T, 2] that tells its place
    n = raster[:, torch.from_numpy(c.pi)]
    grid = make_pool("grid:3", c)(n).view(3, 3, 2)
    expected = torch.arange(36.0).view(3, 2, 3, 2).mean(dim=(1, 3))
    assert torch.allclose(grid[..., 0], expected)
    assert torch.equal(make_pool("flatten", c)(n), raster.flatten(1))
    assert torch.equal(make_pool("last", c)(n), n[:, -1])
    assert torch.allclose(make_pool("mean", c)(n), raster.mean(dim=1))


def test_a_grid_that_does_not_divide_the_picture_still_covers_every_pixel_once() -> None:
    pool = make_pool("grid:4", codec())
    n = torch.eye(36)[None]  # [1, T, T]: position i has a 1 in column i
    regions = pool(n).view(16, 36)
    assert torch.allclose(regions.sum(dim=1), torch.ones(16))
    assert ((regions > 0).sum(dim=0) == 1).all()


def test_batches_do_not_change_features(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pool = random_model(CONFIG), make_pool("grid:2", codec())
    whole = np.concatenate(list(extract(model, tokens(), [1, 3], pool)))
    assert whole.shape == (5, 2, 4 * 8)
    monkeypatch.setattr("igpt.probe.features.in_batches", partial(in_batches, batch_size=2))
    parts = list(extract(model, tokens(), [1, 3], pool))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.allclose(np.concatenate(parts), whole, atol=1e-6)


def test_a_bert_model_is_masked_as_in_training_and_differently_by_every_mask() -> None:
    model, pool = random_model(BERT), make_pool("mean", codec())

    def of(mask: int) -> np.ndarray:
        return np.concatenate(list(extract(model, tokens(), [0, 3], pool, mask=mask)))

    def shown(*inputs: torch.Tensor) -> np.ndarray:
        means = [n.mean(dim=1) for n in model.features(*inputs)]
        return torch.stack(means, dim=1)[:, [0, 3]].detach().numpy()

    for mask in (0, 1):
        assert np.allclose(of(mask), shown(*trunk_inputs(model, tokens(), 0, mask)), atol=1e-6)
    assert not np.allclose(of(0), shown(tokens()), atol=1e-3)
    assert not np.allclose(of(0), of(1), atol=1e-3)


@pytest.mark.parametrize("probability", [0.15, 0.6])
def test_as_much_is_hidden_as_in_training(probability: float) -> None:
    model = random_model(replace(BERT, mask_probability=probability))
    _, masked = trunk_inputs(model, torch.zeros(200, 36, dtype=torch.long), 0)
    assert masked.float().mean().item() == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize(
    ("text", "layers"), [("all", (0, 1, 2, 3)), ("0", (0,)), ("3", (3,)), ("1:3", (1, 2, 3))]
)
def test_layers_are_read_with_both_ends(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 3) == layers


@pytest.mark.parametrize("text", ["4", "2:1", "-1", "1:4", "first", "", "1:"])
def test_layers_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="0 to 3"):
        parse_layers(text, 3)


@pytest.mark.parametrize("name", ["max", "grid", "grid:0", "grid:7", "grid:x"])
def test_pools_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="grid:G with G up to 6"):
        make_pool(name, codec())


def test_features_of_a_fresh_model_are_finite() -> None:
    features = list(extract(ImageGPT(CONFIG), tokens(), [0, 1, 2, 3], make_pool("mean", codec())))
    assert np.isfinite(features[0]).all()
