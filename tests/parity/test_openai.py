"""OpenAI's own code, its weights, inputs and outputs, against ours."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from igpt.config import ModelConfig
from igpt.interop.openai import config_from_openai, weights_from_openai
from igpt.model import ImageGPT
from igpt.objectives import masked_mean, token_nats
from shared_data import shared

MODELS = ["openai_tiny_ar", "openai_tiny_clf", "openai_tiny_bert"]


def _load(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    folder = shared("reference", name)
    hparams = json.loads((folder / "hparams.json").read_text())
    return dict(np.load(folder / "weights.npz")), dict(np.load(folder / "reference.npz")), hparams


def _config(variables: dict[str, Any]) -> ModelConfig:
    return config_from_openai({name: array.shape for name, array in variables.items()})


def _model(variables: dict[str, Any]) -> ImageGPT:
    model = ImageGPT(_config(variables))
    model.load_state_dict(weights_from_openai(variables.__getitem__, model.config))
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_read_off_the_tensors(name: str) -> None:
    variables, _, hparams = _load(name)
    config = _config(variables)
    assert config.n_layer == hparams["n_layer"]
    assert config.n_head == hparams["n_head"]
    assert config.n_embd == hparams["n_embd"]
    assert config.vocab_size == hparams["n_vocab"]
    assert config.n_positions == hparams["n_px"] ** 2
    assert config.causal == (not hparams["bert"])


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_losses_equal_those_of_openai(name: str) -> None:
    variables, reference, _ = _load(name)
    model = _model(variables)
    tokens = torch.from_numpy(reference["tokens"]).long()
    masked = torch.from_numpy(reference["masked"]) if "masked" in reference else None
    with torch.inference_mode():
        n = model.trunk(tokens, masked)
        logits = model.head(n)
        nats = token_nats(logits, tokens)
        loss = nats.mean() if masked is None else masked_mean(nats, masked).mean()
    np.testing.assert_allclose(logits.numpy(), reference["gen_logits"], atol=1e-5, rtol=0)
    assert loss.item() == pytest.approx(float(reference["gen_loss"]), abs=1e-5)
    if model.config.n_classes:
        labels = torch.from_numpy(reference["labels"])
        with torch.inference_mode():
            classes = model.classify(n)
        clf_loss = F.cross_entropy(classes, labels)
        accuracy = 100 * (classes.argmax(1) == labels).float().mean()
        assert clf_loss.item() == pytest.approx(float(reference["clf_loss"]), abs=1e-5)
        assert accuracy.item() == float(reference["accuracy"])
