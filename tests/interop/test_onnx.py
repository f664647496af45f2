"""ONNX graphs, run by ONNX Runtime, against the models that they were made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import igpt as package
from conftest import assert_mistake
from igpt.config import ModelConfig, UserError
from igpt.folder import save_model
from igpt.interop import onnx
from igpt.interop.onnx import export_onnx
from igpt.order import Codec
from igpt.palette import Palette
from igpt.sample import Sampling
from test_model import random_model
from test_sample import completed

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is not installed: igpt[onnx]")

AR = ModelConfig(n_layer=2, n_embd=24, n_head=3, vocab_size=11, n_positions=16)


def session(path: Path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_picture_is_painted_step_by_step_as_here(tmp_path: Path) -> None:
    model = random_model(AR)
    differences = export_onnx(model, tmp_path)
    assert set(differences) == {"score", "decode"}
    assert max(differences.values()) < 1e-4
    decode = session(tmp_path / "decode.onnx")
    token = np.full(2, 11)
    keys = values = np.zeros((2, 2, 3, 0, 8), np.float32)
    painted = []
    for _ in range(16):
        logits, keys, values = decode.run(None, {"token": token, "keys": keys, "values": values})
        token = logits.argmax(axis=1)
        painted.append(token)
    greedy = Sampling(temperature=0, precision="float32")
    expected = completed(model, torch.empty(1, 0, dtype=torch.long), 2, greedy)[0]
    assert np.array_equal(np.stack(painted, axis=1), expected.numpy())


@pytest.mark.parametrize(("side", "graphs"), [(1, {"score"}), (2, {"score", "decode"})])
def test_the_smallest_pictures_have_graphs_too(tmp_path: Path, side: int, graphs: set[str]) -> None:
    assert (
        set(export_onnx(random_model(replace(AR, n_layer=1, n_positions=side**2)), tmp_path))
        == graphs
    )


@pytest.mark.parametrize("causal", [True, False])
def test_a_classifier_scores_and_classifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    model = random_model(
        ModelConfig(
            n_layer=1, n_embd=16, n_head=2, vocab_size=5, n_positions=9, n_classes=3, causal=causal
        )
    )
    names = {"score", "classify", "decode"} if causal else {"score", "classify"}
    found = onnx.graphs(model)
    assert set(found) == names
    if causal:  # the others are exported above
        monkeypatch.setattr(onnx, "graphs", lambda _model: {"classify": found["classify"]})
    assert set(export_onnx(model, tmp_path)) == ({"classify"} if causal else names)
    tokens = torch.randint(5, (7, 9))
    inputs = {"tokens": tokens.numpy()}
    masked = None if causal else torch.rand(7, 9) < 0.3
    if masked is not None:
        inputs["masked"] = masked.numpy()
    (logits,) = session(tmp_path / "classify.onnx").run(None, inputs)
    with torch.inference_mode():
        expected = model.classify(model.trunk(tokens, masked))
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_the_command_writes_graphs_palette_and_order(igpt, tmp_path: Path) -> None:
    out, run = tmp_path / "onnx", tmp_path / "run"
    clusters = np.random.default_rng(0).uniform(-1, 1, (11, 3)).astype(np.float32)
    model = random_model(replace(AR, n_layer=1, n_positions=64))
    save_model(run, model, Codec(Palette(clusters), "random:1", 8))
    result = igpt("export", "onnx", run, "--out", out, "--json")
    assert result.status == 0, result.err
    assert max(json.loads(result.out)["differences"].values()) < 1e-4
    assert {p.name for p in tmp_path.iterdir()} == {"onnx", "run"}
    picture = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    palette, order = np.load(out / "palette.npy").astype(np.float64), np.load(out / "order.npy")
    colours = picture.reshape(1, 64, 1, 3) / 127.5 - 1
    raster = ((colours - palette) ** 2).sum(axis=-1).argmin(axis=-1)  # by these files alone
    (nats,) = session(out / "score.onnx").run(None, {"tokens": raster[:, order]})
    assert nats.mean() == pytest.approx(package.load(run).nll(picture)[0], abs=1e-4)


def test_a_folder_in_use_is_refused(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("x")
    assert_mistake(igpt("export", "onnx", tiny_run, "--out", tmp_path), "is not empty")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert_mistake(igpt("export", "onnx", tiny_run, "--out", "."), "the current folder")


def test_without_onnx_one_line_says_what_to_install(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igpt.interop.onnx.find_spec", lambda _name: None)
    result = igpt("export", "onnx", tiny_run, "--out", tmp_path / "out")
    assert_mistake(result, "not installed: pip install onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_gives_no_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full(inputs["tokens"].shape, np.nan, np.float32)]

    monkeypatch.setattr("igpt.interop.onnx._export", lambda *_: None)
    monkeypatch.setattr("onnxruntime.InferenceSession", Broken)
    with pytest.raises(UserError, match="nan"):
        export_onnx(random_model(replace(AR, n_layer=1)), tmp_path)
