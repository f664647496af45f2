"""OpenAI's checkpoints through `igpt import`, against what OpenAI's code computed from them.

Needs TensorFlow, which reads them and here also writes some: `make test-openai`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from igpt.interop.tensorflow_reader import QUIET
from igpt.objectives import masked_mean, token_nats
from igpt.pipeline import load
from shared_data import shared

os.environ.update(QUIET)  # as the reader does, which comes second here
tensorflow = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed: make test-openai, or igpt[openai]"
)

MODELS = ["openai_tiny_ar", "openai_tiny_clf", "openai_tiny_bert"]
Variables = dict[str, np.ndarray]


def reference(name: str) -> tuple[Path, Mapping[str, Any], dict[str, Any]]:
    """The prefix of a checkpoint, what OpenAI's code computed from it, and its sizes."""
    folder = shared("reference", name)
    hparams = json.loads((folder / "hparams.json").read_text())
    return folder / "model.ckpt-1000", dict(np.load(folder / "reference.npz")), hparams


def variables_of(name: str) -> Variables:
    return dict(np.load(shared("reference", name) / "weights.npz"))


def write(prefix: Path, variables: Variables, shards: int = 1) -> Path:
    """Let TensorFlow write a checkpoint of several shards, as OpenAI's are."""
    names, parts = sorted(variables), []
    for i in range(shards):
        chosen = names[i::shards]
        parts.append(f"{prefix}.part{i}")
        values = [tensorflow.constant(variables[name]) for name in chosen]
        tensorflow.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=chosen,
            shape_and_slices=[""] * len(chosen),
            tensors=values,
        )
    tensorflow.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(prefix), delete_old_dirs=False
    )
    return prefix


def clusters(path: Path, count: int) -> Path:
    np.save(path, np.random.default_rng(0).uniform(-1, 1, (count, 3)).astype(np.float32))
    return path


def copy(prefix: Path, folder: Path) -> Path:
    """A checkpoint that a test may damage."""
    for file in prefix.parent.glob(f"{prefix.name}.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / prefix.name


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_losses_equal_those_of_openai(igpt, name: str, tmp_path: Path) -> None:
    prefix, expected, hparams = reference(name)
    palette = clusters(tmp_path / "clusters.npy", hparams["n_vocab"])
    out = tmp_path / "run"
    result = igpt("import", "openai", prefix, "--clusters", palette, "--out", out, "--json")
    assert json.loads(result.out) == {
        "out": str(out),
        "objective": "bert" if hparams["bert"] else "ar",
        "n_layer": hparams["n_layer"],
        "n_head": hparams["n_head"],
        "n_embd": hparams["n_embd"],
        "vocab_size": hparams["n_vocab"],
        "image_size": hparams["n_px"],
        "n_classes": hparams["classes"] if hparams["clf"] else 0,
    }
    assert result.err == ""
    pipeline = load(out)
    assert pipeline.order == "raster"
    assert np.array_equal(pipeline.palette.clusters, np.load(palette))
    model = pipeline.model.cpu()
    tokens = torch.from_numpy(expected["tokens"]).long()  # [B, T]
    masked = torch.from_numpy(expected["masked"]) if "masked" in expected else None
    with torch.inference_mode():
        n = model.trunk(tokens, masked)
        logits = model.head(n)
        nats = token_nats(logits, tokens)
        loss = nats.mean() if masked is None else masked_mean(nats, masked).mean()
    np.testing.assert_allclose(logits.numpy(), expected["gen_logits"], atol=1e-5, rtol=0)
    assert loss.item() == pytest.approx(float(expected["gen_loss"]), abs=1e-5)
    if hparams["clf"]:
        with torch.inference_mode():
            classes = F.cross_entropy(model.classify(n), torch.from_numpy(expected["labels"]))
        assert classes.item() == pytest.approx(float(expected["clf_loss"]), abs=1e-5)
        assert pipeline.class_names == tuple("0123456789")


def test_many_shards_with_the_state_of_adam_and_clusters_beside_them(igpt, tmp_path: Path) -> None:
    variables = variables_of("openai_tiny_ar")
    slots = {f"{n}/{s}": np.ones_like(v) for n, v in variables.items() for s in ("Adam", "Adam_1")}
    prefix = write(
        tmp_path / "model.ckpt-7", variables | slots | {"global_step": np.array(7)}, shards=5
    )
    assert prefix.with_name("model.ckpt-7.data-00004-of-00005").is_file()
    clusters(tmp_path / "kmeans_centers.npy", 512)
    result = igpt("import", "openai", prefix, "--out", tmp_path / "many")
    assert result.status == 0, result.err
    whole, _, _ = reference("openai_tiny_ar")
    palette = tmp_path / "kmeans_centers.npy"
    igpt("import", "openai", whole, "--clusters", palette, "--out", tmp_path / "one")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "many" / file.name).read_bytes()


def test_the_other_commands_work_on_an_imported_model(igpt, tmp_path: Path) -> None:
    for name in MODELS:
        prefix, _, hparams = reference(name)
        palette = clusters(tmp_path / "clusters.npy", hparams["n_vocab"])
        out = tmp_path / name
        igpt("import", "openai", prefix, "--clusters", palette, "--out", out)
        evaluated = igpt("eval", out, "--data", "digits", "--limit", 3, "--json")
        assert json.loads(evaluated.out)["nats_per_pixel"] > 0, evaluated.err
    painted = igpt("sample", tmp_path / "openai_tiny_ar", "-n", 2, "--out", tmp_path / "s.png")
    assert painted.status == 0, painted.err
    assert (tmp_path / "s.png").is_file()


def damage(kind: str, prefix: Path) -> None:
    data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    index = prefix.with_name(f"{prefix.name}.index")
    if kind == "no shard":
        data.unlink()
    elif kind == "short shard":
        data.write_bytes(data.read_bytes()[:1000])
    elif kind == "changed shard":
        data.write_bytes(data.read_bytes()[:-1] + b"\x55")
    elif kind == "short index":
        index.write_bytes(index.read_bytes()[:300])
    else:
        index.write_bytes(b"")


@pytest.mark.parametrize(
    "kind", ["no shard", "short shard", "changed shard", "short index", "empty index"]
)
def test_a_damaged_checkpoint_gives_one_line_and_leaves_nothing(
    igpt, kind: str, tmp_path: Path
) -> None:
    whole, _, _ = reference("openai_tiny_ar")
    prefix = copy(whole, tmp_path)
    damage(kind, prefix)
    palette = clusters(tmp_path / "clusters.npy", 512)
    refused(igpt, prefix, palette, tmp_path / "run", f"checkpoint {prefix} is not whole: ")


def test_tensorflow_adds_no_lines_of_its_own(tmp_path: Path) -> None:
    whole, _, _ = reference("openai_tiny_ar")
    prefix = copy(whole, tmp_path)
    damage("short shard", prefix)
    clusters(tmp_path / "kmeans_centers.npy", 512)
    words = [sys.executable, "-m", "igpt", "import", "openai", prefix, "--out", tmp_path / "run"]
    loud = {name: value for name, value in os.environ.items() if name not in QUIET}
    done = subprocess.run(words, capture_output=True, text=True, env=loud)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model/h1/mlp/c_fc/b": (192,)}, "unknown variable model/h1/mlp/c_fc/b"),
        ({"model/h1/mlp/c_fc/w": (48, 191)}, "model/h1/mlp/c_fc/w has shape [48, 191]"),
        ({"model/h1/mlp/c_fc/w": None}, "variable model/h1/mlp/c_fc/w is missing"),
        ({"model/wte": None}, "not an image-gpt checkpoint: variable model/wte is missing"),
        ({"model/wpe": (35, 48)}, "35 positions are not a square picture"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    igpt, change: dict[str, tuple[int, ...] | None], complaint: str, tmp_path: Path
) -> None:
    variables = variables_of("openai_tiny_ar")
    for name, shape in change.items():
        variables.pop(name, None)
        if shape is not None:
            variables[name] = np.zeros(shape, np.float32)
    prefix = write(tmp_path / "model.ckpt-1", variables)
    palette = clusters(tmp_path / "clusters.npy", 512)
    refused(igpt, prefix, palette, tmp_path / "run", complaint)


def test_clusters_of_another_count_are_refused(igpt, tmp_path: Path) -> None:
    prefix, _, _ = reference("openai_tiny_ar")
    palette = clusters(tmp_path / "clusters.npy", 511)
    refused(igpt, prefix, palette, tmp_path / "run", "511 clusters, but the model has 512 tokens")


def test_a_disk_that_refuses_leaves_no_folder(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("igpt.folder.save_file", full)
    prefix, _, _ = reference("openai_tiny_ar")
    palette = clusters(tmp_path / "clusters.npy", 512)
    refused(igpt, prefix, palette, tmp_path / "run", "No space left on device")


def refused(igpt, prefix: Path, palette: Path, out: Path, complaint: str) -> None:
    result = igpt("import", "openai", prefix, "--clusters", palette, "--out", out)
    assert result.status == 2
    assert result.err.count("\n") == 1, result.err
    assert complaint in result.err
    assert result.out == ""
    assert not out.exists()
