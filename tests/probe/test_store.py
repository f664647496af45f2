"""A probe on the disk, and what it refuses to be used with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import load_model
from igpt.config import UserError
from igpt.probe.attention import AttentionHead
from igpt.probe.linear import LinearProbe
from igpt.probe.store import (
    Fingerprint,
    LearnedFrom,
    SavedProbe,
    fingerprint,
    load_probe,
    save_probe,
)
from igpt.rng import torch_rng

MARK = Fingerprint("abc", "def", 8, "raster")


def linear() -> LinearProbe:
    rng = np.random.default_rng(0)
    return LinearProbe(rng.normal(size=(3, 5)).astype(np.float32), np.zeros(3, np.float32))


def attention() -> AttentionHead:
    head = AttentionHead(8, 3)
    head.init_weights(torch_rng(0, "test"))
    torch.nn.init.normal_(head.out.weight, generator=torch_rng(1, "test"))
    return head


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_a_probe_survives_the_disk(tmp_path: Path, kind: str) -> None:
    probe = linear() if kind == "linear" else attention()
    width = 5 if kind == "linear" else 6 * 8
    learned = LearnedFrom("0" * 16, 40)
    save_probe(tmp_path, SavedProbe(probe, (1, 2), "mean", ("a", "b", "ü"), MARK, learned))
    back = load_probe(tmp_path, MARK)
    assert (back.layers, back.pool, back.class_names) == ((1, 2), "mean", ("a", "b", "ü"))
    assert back.learned_from == learned
    features = np.random.default_rng(1).normal(size=(4, width)).astype(np.float32)
    assert np.array_equal(back.probe.logits(features), probe.logits(features))


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (Fingerprint("abd", "def", 8, "raster"), "another model"),
        (Fingerprint("abc", "dee", 8, "raster"), "another palette"),
        (Fingerprint("abc", "def", 9, "raster"), "another size"),
        (Fingerprint("abc", "def", 8, "snake"), "another order"),
    ],
)
def test_a_probe_of_something_else_is_refused(
    tmp_path: Path, other: Fingerprint, complaint: str
) -> None:
    save_probe(tmp_path, SavedProbe(linear(), (1,), "mean", ("a", "b", "c"), MARK))
    with pytest.raises(UserError, match=complaint):
        load_probe(tmp_path, other)


def test_the_mark_tells_models_apart_but_not_their_heads(tiny_run: Path) -> None:
    model, codec = load_model(tiny_run)
    before = fingerprint(model, codec)
    with torch.no_grad():
        model.head.weight += 1
        assert fingerprint(model, codec) == before
        model.wte[0, 0] += 1
    assert fingerprint(model, codec) != before


def test_broken_probes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no probe in"):
        load_probe(tmp_path, MARK)
    save_probe(tmp_path, SavedProbe(linear(), (1,), "mean", ("a", "b", "c"), MARK))
    weights = tmp_path / "probe.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="truncated"):
        load_probe(tmp_path, MARK)
    weights.write_bytes(whole)
    save_file({"weight": torch.zeros(3, 2)}, weights)
    with pytest.raises(UserError, match="is not a probe"):
        load_probe(tmp_path, MARK)
