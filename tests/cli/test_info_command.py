"""`igpt info` through its entry point."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

from igpt.config import PRESETS, ModelConfig
from igpt.interop.files import fetch_folder
from igpt.interop.huggingface import config_to_hf
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.pipeline import load


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_described(igpt, name: str) -> None:
    result = igpt("info", name, "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    assert (values["n_positions"], values["vocab_size"]) == (1024, 512)
    assert values["parameters"] == sum(values["parameters_by_part"].values())
    assert values["batch_size"] == 128
    assert values["training_step_flops"] == 3 * 128 * values["forward_flops"]
    assert values["weight_bytes"]["float32"] == 4 * values["parameters"]


def test_the_text_has_all_that_the_values_have(igpt) -> None:
    text = igpt("info", "igpt-s").out
    for line in (
        "igpt-s, autoregressive",
        "layers 24",
        "width 512",
        "heads 8",
        "context, tokens 1,024",
        "vocabulary, colours 512",
        "parameters 76,571,648",
        "token embedding 262,144",
        "FLOPs, forward pass of a picture 206.7 G",
        "FLOPs, training step of 128 pictures 79.37 T",
        "bytes float32 bfloat16",
        "weights 306.3 M 153.1 M",
        "key/value cache of a picture 100.7 M 50.33 M",
    ):
        assert line in [" ".join(row.split()) for row in text.splitlines()]


def test_a_preset_takes_a_size_and_colours(igpt) -> None:
    values = json.loads(igpt("info", "igpt-xl", "--size", 64, "--colors", 16, "--json").out)
    assert (values["n_positions"], values["vocab_size"]) == (4096, 16)
    assert values["parameters_by_part"]["positions"] == 4096 * 3072


def test_a_recipe_is_shown_with_its_network(igpt, tmp_path: Path) -> None:
    text = igpt("info", "pictures32").out
    assert text.startswith("# source: some thousands of your own pictures")
    assert "vocabulary, colours 256" in [" ".join(row.split()) for row in text.splitlines()]
    clusters = tmp_path / "five.npy"
    Palette(np.linspace(-1, 1, 15).reshape(5, 3)).save(clusters)
    own = tmp_path / "own.yaml"
    own.write_text(f"{{objective: bert, data: {{image_size: 8}}, palette: {{path: {clusters}}}}}")
    values = json.loads(igpt("info", own, "--json").out)
    assert (values["vocab_size"], values["n_positions"], values["causal"]) == (5, 64, False)
    assert values["recipe"]["objective"] == "bert"
    assert values["training"] == {}


def test_a_run_is_described_as_it_is(igpt, tiny_run: Path) -> None:
    values = json.loads(igpt("info", tiny_run, "--json").out)
    model = load(tiny_run).model
    assert values["parameters"] == sum(p.numel() for p in model.parameters())
    assert values["batch_size"] == 8
    assert (values["n_layer"], values["n_embd"], values["n_positions"]) == (2, 16, 64)
    training = values["training"]
    assert (training["data"], training["steps"]) == ("digits", "12 of 12")
    assert 0 < float(training["best_val_loss"]) < 3
    assert "best val loss" in igpt("info", tiny_run).out


@pytest.fixture
def uploaded(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was uploaded by hand, all of it; what is fetched of it lies in `cache` beside."""
    folder = Path(shutil.copytree(tiny_run, tmp_path / "uploaded"))

    def download(_name: str, **options: Any) -> str:
        files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        patterns = {name: options.get(name) for name in ("allow_patterns", "ignore_patterns")}
        for name in filter_repo_objects(files, **patterns):
            (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_run_on_the_hub_is_described_by_what_is_fetched_of_it(
    igpt, tiny_run: Path, uploaded: Path, tmp_path: Path
) -> None:
    (uploaded / "probe").mkdir()
    (uploaded / "probe" / "probe.safetensors").write_text("")
    there, here = (json.loads(igpt("info", run, "--json").out) for run in ("me/mine", tiny_run))
    assert there["training"] == here["training"]
    assert there["training"]["steps"] == "12 of 12"
    assert (tmp_path / "cache" / "probe" / "probe.safetensors").exists()
    assert not (tmp_path / "cache" / "checkpoints").exists()


@pytest.mark.parametrize("safetensors", ["model.safetensors", "model.safetensors.index.json", None])
def test_of_weights_in_two_formats_one_is_fetched(uploaded: Path, safetensors: str | None) -> None:
    (uploaded / "model.safetensors").rename(uploaded / (safetensors or "pytorch_model.bin"))
    (uploaded / "pytorch_model.bin").touch()
    fetched = fetch_folder("me/mine")
    assert (fetched / "pytorch_model.bin").exists() is (safetensors is None)
    assert (fetched / "recipe.yaml").exists()


@pytest.mark.parametrize("change", [{}, {"causal": False}, {"n_classes": 3}, {"bias": True}])
def test_a_folder_of_transformers_is_described(
    igpt, tmp_path: Path, change: dict[str, int]
) -> None:
    from safetensors.torch import save_file

    from igpt.interop.huggingface import weights_to_hf

    config = replace(ModelConfig(2, 2, 8, vocab_size=5, n_positions=16), **change)
    model = ImageGPT(config)
    for parameter in model.parameters():
        parameter.data.fill_(1)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config, "raster")))
    save_file(weights_to_hf(model.state_dict()), tmp_path / "model.safetensors")
    values = json.loads(igpt("info", tmp_path, "--json").out)
    assert values["parameters"] == sum(p.numel() for p in model.parameters())
    assert values["causal"] is config.causal
    assert (values["cache_bytes"]["float32"] > 0) is config.causal


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["igpt-z"], "no preset or recipe of that name: igpt-s, igpt-m"),
        (["digits", "--size", "8"], "are for presets"),
        (["{tmp}/gone.yaml"], "no recipe file"),
        (["{tmp}"], "expected a run or an ImageGPT model folder"),
        (["{run}", "--size", "8"], "are for presets"),
        (["igpt-s", "--size", "-3"], "image_size must be at least 1"),
        (["igpt-s", "--colors", "0"], "colors must be 2 to 65535"),
        ([], "MODEL"),
    ],
)
def test_a_mistake_gives_one_line_and_status_2(
    igpt, tiny_run: Path, tmp_path: Path, words: list[str], complaint: str
) -> None:
    result = igpt("info", *[word.format(tmp=tmp_path, run=tiny_run) for word in words])
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert complaint in line
    assert result.out == ""
