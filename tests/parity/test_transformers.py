"""The installed `transformers` reads what we save, computes the same, and we read what it saves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.checkpoint import load_model, save_model
from igpt.config import ModelConfig
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.palette import Palette

transformers = pytest.importorskip("transformers")


def random_model(config: ModelConfig, seed: int = 0) -> ImageGPT:
    """A model in which no weight is zero, so that a dropped or swapped one shows."""
    model = ImageGPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_codec(k: int, size: int) -> Codec:
    clusters = np.random.default_rng(k).uniform(-1, 1, (k, 3)).astype(np.float32)
    return Codec(Palette(clusters), "raster", size)


def their_logits(theirs: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of every token: the start token goes first and the last token never enters."""
    start = torch.full((len(tokens), 1), theirs.config.vocab_size - 1)
    with torch.inference_mode():
        return theirs(input_ids=torch.cat((start, tokens[:, :-1]), dim=1)).logits


@settings(max_examples=8, deadline=None)
@given(
    n_layer=st.integers(1, 3),
    n_head=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([4, 8, 16]),
    vocab=st.integers(2, 40),
    size=st.integers(2, 6),
    bias=st.booleans(),
)
def test_a_saved_model_gives_the_same_logits_in_transformers(
    tmp_path_factory: pytest.TempPathFactory,
    n_layer: int,
    n_head: int,
    width: int,
    vocab: int,
    size: int,
    bias: bool,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig(n_layer, n_head, n_head * width, vocab, size * size, bias=bias)
    ours = random_model(config)
    save_model(folder, ours, random_codec(vocab, size))
    theirs, info = transformers.ImageGPTForCausalImageModeling.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.randint(vocab, (3, size * size), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(
            ours(tokens), their_logits(theirs.eval(), tokens), atol=1e-5, rtol=0
        )


def test_a_model_saved_by_transformers_gives_the_same_logits_here(tmp_path: Path) -> None:
    config = transformers.ImageGPTConfig(
        vocab_size=17, n_positions=16, n_embd=24, n_layer=2, n_head=3, tie_word_embeddings=False
    )
    theirs = transformers.ImageGPTForCausalImageModeling(config).eval()
    theirs.save_pretrained(tmp_path)
    clusters = random_codec(16, 4).palette.clusters
    transformers.ImageGPTImageProcessor(clusters=clusters).save_pretrained(tmp_path)
    ours, codec = load_model(tmp_path)
    assert np.array_equal(codec.palette.clusters, clusters)
    tokens = torch.randint(16, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), their_logits(theirs, tokens), atol=1e-5, rtol=0)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    for causal in (True, False):
        config = ModelConfig(2, 2, 16, 7, 16, n_classes=3, causal=causal)
        ours, codec = random_model(config), random_codec(7, 4)
        save_model(tmp_path, ours, codec)
        loaded, loaded_codec = load_model(tmp_path)
        assert loaded.config == config
        assert loaded_codec.palette == codec.palette
        for name, tensor in ours.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
