"""The model beside section 2 of the paper."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from igpt.config import ModelChoice, ModelConfig, UserError
from igpt.model import ImageGPT
from igpt.parallel.sharding import draw_whole

AR = ModelConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=11, n_positions=9)
BERT = ModelConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=11, n_positions=9, causal=False)


def random_model(config: ModelConfig) -> ImageGPT:
    """A model with no weight at zero, so that everything takes part."""
    torch.manual_seed(0)
    model = ImageGPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_logits_depend_on_the_tokens_before_and_on_all_of_those() -> None:
    model = random_model(AR)
    tokens = torch.arange(9)[None] % 11
    with torch.inference_mode():
        base = model(tokens)
        for i in range(9):
            changed = tokens.clone()
            changed[0, i] = 10
            moved = (model(changed) - base).abs().amax(-1)[0] > 1e-7  # [T]
            assert moved.tolist() == [j > i for j in range(9)]


def test_bert_sees_both_sides_and_nothing_of_what_is_masked() -> None:
    model = random_model(BERT)
    tokens = torch.arange(9)[None] % 11
    masked = torch.zeros(1, 9, dtype=torch.bool)
    masked[0, 4] = True
    with torch.inference_mode():
        base = model(tokens, masked)
        hidden, seen = tokens.clone(), tokens.clone()
        hidden[0, 4] = 10
        seen[0, 8] = 10
        assert torch.equal(model(hidden, masked), base)
        assert ((model(seen, masked) - base).abs().amax(-1) > 1e-7).all()


@pytest.mark.parametrize("config", [AR, BERT])
def test_the_first_loss_is_ln_k(config: ModelConfig) -> None:
    assert torch.equal(ImageGPT(config)(torch.zeros(1, 9, dtype=torch.long)), torch.zeros(1, 9, 11))


def test_the_initialisation_is_openais() -> None:
    d, n_layer = 128, 3
    model = ImageGPT(ModelConfig(n_layer, 4, d, 512, 256, n_classes=10, bias=True))
    expected = {
        "wte": 0.02,
        "wpe": 0.01,
        "start": 0.02,
        "attn.qkv.weight": 1 / math.sqrt(d),
        "attn.proj.weight": 1 / math.sqrt(d * n_layer),
        "mlp.fc.weight": 0.02,
        "mlp.proj.weight": 0.02,
    }
    for name, parameter in model.named_parameters():
        short = name.split(".", 2)[-1]
        if short in expected:
            tolerance = 4 / math.sqrt(2 * parameter.numel())  # four standard errors
            assert parameter.std().item() == pytest.approx(expected[short], rel=tolerance), name
        elif "ln" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert not parameter.any(), name


def test_before_the_first_step_all_colours_and_all_classes_are_as_likely() -> None:
    """Whatever was in the memory of the two heads."""
    model, tokens = random_model(replace(AR, n_classes=3)), torch.zeros(1, 9, dtype=torch.long)
    model.init_weights()
    n = model.trunk(tokens)
    assert torch.equal(model.classify(n).softmax(-1), torch.full((1, 3), 1 / 3))
    assert torch.equal(model.head(n), torch.zeros(1, 9, 11))


def test_the_initialisation_follows_its_generator() -> None:
    a, b, c = (ImageGPT(AR) for _ in range(3))
    for model, seed in ((a, 1), (b, 1), (c, 2)):
        model.init_weights(draw_whole(torch.Generator().manual_seed(seed)))
    assert torch.equal(a.wte, b.wte)
    assert not torch.equal(a.wte, c.wte)


@pytest.mark.parametrize("change", [{"n_head": 3}, {"n_layer": 0}, {"vocab_size": 0}])
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        ModelConfig(**{**AR.__dict__, **change})


def test_an_unknown_preset_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match="igpt-s"):
        ModelChoice("gpt-2")


def test_what_is_hidden_is_a_token_of_zeros_at_its_place() -> None:
    model, tokens = random_model(BERT), torch.arange(9)[None]
    with torch.no_grad():
        model.wte[10] = 0
    masked = torch.zeros(1, 9, dtype=torch.bool)
    masked[0, 4] = True
    with torch.inference_mode():
        assert torch.equal(model(tokens, masked), model(torch.where(masked, 10, tokens)))
        turned = model(tokens.flip(1)).flip(1)
        assert not torch.allclose(turned, model(tokens), atol=1e-3)  # places count
