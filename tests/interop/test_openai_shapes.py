"""What the shapes of OpenAI's variables say, and which are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.config import ModelConfig, UserError
from igpt.interop.openai import config_from_openai, variable_shapes

SMALL = ModelConfig(n_layer=11, n_head=2, n_embd=8, vocab_size=5, n_positions=9, n_classes=3)


@given(
    n_layer=st.integers(1, 12),
    n_head=st.integers(1, 4),
    width=st.integers(1, 4),
    vocab_size=st.integers(1, 20),
    side=st.integers(1, 6),
    n_classes=st.integers(0, 3),
    causal=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_sizes_are_inferred_with_heads_classes_and_objective(
    n_layer: int,
    n_head: int,
    width: int,
    vocab_size: int,
    side: int,
    n_classes: int,
    causal: bool,
) -> None:
    config = ModelConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_head * width,
        vocab_size=vocab_size,
        n_positions=side**2,
        n_classes=n_classes,
        causal=causal,
    )
    assert config_from_openai(variable_shapes(config)) == config


@pytest.mark.parametrize("name", variable_shapes(SMALL))
def test_every_missing_variable_is_named(name: str) -> None:
    shapes = variable_shapes(SMALL)
    del shapes[name]
    if name in ("model/sos", "model/clf/wclf"):  # BERT has no start, a pretrained model no classes
        config_from_openai(shapes)
        return
    with pytest.raises(UserError, match=f"variable {name} is missing"):
        config_from_openai(shapes)


@pytest.mark.parametrize("name", variable_shapes(SMALL))
def test_a_wrong_shape_is_named(name: str) -> None:
    shapes = variable_shapes(SMALL)
    shapes[name] = (*shapes[name], 1)
    with pytest.raises(UserError, match=f"variable {name} has shape"):
        config_from_openai(shapes)


def test_of_two_sizes_that_disagree_one_is_named() -> None:
    shapes = variable_shapes(SMALL) | {"model/h3/mlp/c_fc/w": (8, 31)}
    complaint = r"model/h3/mlp/c_fc/w has shape \[8, 31\], the others ask for \[8, 32\]"
    with pytest.raises(UserError, match=complaint):
        config_from_openai(shapes)
    with pytest.raises(UserError, match=r"n_embd \(9\) must be a multiple of n_head \(2\)"):
        config_from_openai(variable_shapes(SMALL) | {"model/wte": (5, 9)})


def test_a_missing_layer_is_named() -> None:
    shapes = {n: s for n, s in variable_shapes(SMALL).items() if not n.startswith("model/h4/")}
    with pytest.raises(UserError, match="variable model/h4/ln_1/g is missing"):
        config_from_openai(shapes)


def test_left_over_variables_are_named() -> None:
    shapes = variable_shapes(SMALL) | {"model/h1/mlp/c_fc/b": (32,)}
    with pytest.raises(UserError, match="unknown variable model/h1/mlp/c_fc/b"):
        config_from_openai(shapes)


def test_another_architecture_is_refused() -> None:
    gpt2 = {"model/wte": (50257, 768), "model/wpe": (1024, 768), "model/h0/attn/c_attn/w": (1,)}
    with pytest.raises(UserError, match="not an image-gpt checkpoint: variable model/h0/attn/q"):
        config_from_openai(gpt2)
    with pytest.raises(UserError, match="not an image-gpt checkpoint: variable model/wte"):
        config_from_openai({"resnet/conv1/kernel": (7, 7, 3, 64)})


def test_the_state_of_the_optimizer_is_left_aside() -> None:
    shapes = variable_shapes(SMALL)
    slots = {f"{n}/{slot}": s for n, s in shapes.items() for slot in ("Adam", "Adam_1")}
    steps = {"global_step": (), "beta1_power": (), "model/beta2_power": ()}
    assert config_from_openai(shapes | slots | steps) == SMALL
