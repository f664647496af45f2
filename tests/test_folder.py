"""The model folder: in one file or several, whole or as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import igpt.folder
from conftest import load_model
from igpt.config import ModelConfig, UserError
from igpt.folder import save_model
from igpt.interop.huggingface import class_names_from_hf
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.palette import Palette

CONFIG = ModelConfig(n_layer=3, n_head=2, n_embd=16, vocab_size=17, n_positions=16, n_classes=3)
CODEC = Codec(Palette(np.linspace(-1, 1, 17 * 3, dtype=np.float32).reshape(17, 3)), "raster", 4)
NAMES = ("cat", "dog", "emu")
BLOCK_BYTES = 12 * 16 * 16 * 4


def model(seed: int) -> ImageGPT:
    made, generator = ImageGPT(CONFIG), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


def same(folder: Path, expected: ImageGPT) -> bool:
    found, theirs = load_model(folder)[0].state_dict(), expected.state_dict()
    assert found.keys() == theirs.keys()
    return all(torch.equal(found[name], tensor) for name, tensor in theirs.items())


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*model*")}


def test_large_weights_are_in_several_files_that_an_index_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(igpt.folder, "FILE_BYTES", 2 * BLOCK_BYTES)
    save_model(tmp_path, model(0), CODEC, NAMES)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    parts = set(index["weight_map"].values())
    assert len(parts) == 3
    assert files(tmp_path) == {"model.safetensors.index.json", *parts}
    assert all((tmp_path / name).stat().st_size < 2.5 * BLOCK_BYTES for name in parts)
    assert same(tmp_path, model(0))
    _, info = transformers.ImageGPTForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    # Other weights come under other names, and the old files go.
    save_model(tmp_path, model(1), CODEC, NAMES)
    assert same(tmp_path, model(1))
    assert len(files(tmp_path)) == 4
    assert not files(tmp_path) & parts
    monkeypatch.undo()
    save_model(tmp_path, model(2), CODEC, NAMES)
    assert same(tmp_path, model(2))
    assert files(tmp_path) == {"model.safetensors"}


def test_what_is_left_of_another_model_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    foreign = tmp_path / "model_v2.safetensors"
    foreign.write_bytes(b"somebody's")
    save_model(tmp_path, model(0), CODEC, NAMES)
    assert (tmp_path / "lm_head.safetensors").is_file()
    plain = ImageGPT(replace(CONFIG, n_classes=0))
    with torch.no_grad():
        plain.head.weight.fill_(0.5)
    save_model(tmp_path, plain, CODEC)
    assert not (tmp_path / "lm_head.safetensors").exists()  # it would replace the new head
    assert same(tmp_path, plain)
    assert foreign.read_bytes() == b"somebody's"


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_a_disk_that_is_full_leaves_the_weights_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    monkeypatch.setattr(igpt.folder, "FILE_BYTES", 2 * BLOCK_BYTES)
    save_model(tmp_path, model(0), CODEC, NAMES)
    before, calls, save = files(tmp_path), [0], igpt.folder.save_file

    def full_at_last(*args: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == fails_at:
            raise OSError(28, "No space left on device")
        save(*args, **options)

    monkeypatch.setattr(igpt.folder, "save_file", full_at_last)
    with pytest.raises(UserError, match="No space left on device"):
        save_model(tmp_path, model(1), CODEC, NAMES)
    assert files(tmp_path) == before
    found, old = load_model(tmp_path)[0].state_dict(), model(0).state_dict()
    # The head for the next pixel is in a file of its own, which is written before the last one.
    assert all(torch.equal(found[n], old[n]) for n in old if n != "head.weight")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = model(0)
    with torch.no_grad():
        broken.ln_f.weight[1] = torch.nan
    save_model(tmp_path, broken, CODEC, NAMES)
    with pytest.raises(UserError, match=r"model\.safetensors: not all weights are finite"):
        load_model(tmp_path)


def test_classes_of_one_name_keep_apart() -> None:
    two_cranes = {"id2label": {"0": "crane", "1": "dog", "2": "crane"}}
    assert class_names_from_hf(two_cranes, 4) == ("crane (0)", "dog", "crane (2)", "3")


@pytest.mark.parametrize("module", ["", "blocks.0", "blocks.0.attn"])
def test_a_weight_that_the_folder_has_no_place_for_is_named(tmp_path: Path, module: str) -> None:
    changed = model(0)
    changed.get_submodule(module).register_parameter("gate", torch.nn.Parameter(torch.zeros(4)))
    name = f"{module}.gate".removeprefix(".")
    with pytest.raises(UserError, match=f"^{name} has no place in a model folder"):
        save_model(tmp_path / "model", changed, CODEC, NAMES)
    assert not (tmp_path / "model" / "model.safetensors").exists()
