"""The run directory: what is whole stays whole, and what is broken is named."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import tiny_recipe
from igpt.checkpoint import RunDirectory, TrainingState, load_model, write_text
from igpt.config import UserError


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, to be broken."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_run_holds_what_its_description_says(tiny_run: Path) -> None:
    names = {str(p.relative_to(tiny_run)) for p in tiny_run.rglob("*") if p.is_file()}
    assert {n for n in names if not n.startswith("tensorboard/")} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
        "palette.npy",
        "metrics.jsonl",
        "checkpoints/latest",
        *(
            f"checkpoints/step-{step:08d}/{name}"
            for step in (8, 12)
            for name in ("model.safetensors", "optimizer.safetensors", "state.json")
        ),
    }
    assert any(n.startswith("tensorboard/") for n in names)


def test_the_resolved_recipe_and_the_palette_are_saved(tiny_run: Path) -> None:
    run = RunDirectory(tiny_run)
    assert run.recipe() == tiny_recipe()
    palette = run.palette()
    assert palette is not None
    assert palette == load_model(tiny_run)[1].palette


def test_the_top_of_the_run_is_the_model_of_the_best_validation(tiny_run: Path) -> None:
    state = RunDirectory(tiny_run).latest_checkpoint()
    assert state is not None
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    assert set(losses) == {4, 8, 12}
    assert state.best == min(losses.values())
    assert min(losses, key=losses.__getitem__) == 12  # it still falls so early
    model, _ = load_model(tiny_run)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state.model[name]), name


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights_are_refused(run: Path, keep: int) -> None:
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated or not a safetensors") as error:
        load_model(run)
    assert "\n" not in str(error.value)


def test_a_pickle_with_code_in_it_is_refused_and_never_run(run: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    for name in ("model.safetensors", "palette.npy"):
        (run / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError):
        load_model(run)
    with pytest.raises(UserError):
        RunDirectory(run).palette()
    assert not (tmp_path / "exploded").exists()


def test_a_missing_tensor_a_strange_one_and_a_wrong_shape_are_named(run: Path) -> None:
    path = run / "model.safetensors"
    weights = load_file(path)
    name = "transformer.h.1.mlp.c_fc.weight"
    for broken, complaint in (
        ({k: v for k, v in weights.items() if k != name}, f"lack tensor {name}"),
        ({**weights, "transformer.h.9.foo": torch.zeros(1)}, "unknown tensor transformer.h.9.foo"),
        ({**weights, name: torch.zeros(3, 5)}, "has shape"),
    ):
        save_file(broken, path)
        with pytest.raises(UserError, match=complaint):
            load_model(run)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"activation_function": "tanh"}, "activation 'tanh', expected one of"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_embd": 32}, "shape"),
        ({"n_inner": 7}, "n_inner"),
        ({"igpt": {"order": "spiral"}}, "unknown order"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_field(
    run: Path, change: dict[str, object], complaint: str
) -> None:
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=complaint):
        load_model(run)


def test_clusters_that_do_not_fit_the_model_are_refused(run: Path) -> None:
    path = run / "preprocessor_config.json"
    contents = json.loads(path.read_text())
    for clusters, complaint in (
        (contents["clusters"][:-1], "16 clusters, but the model has 17"),
        ([[3.0, 0, 0]] * 17, "lie in"),
        (None, "no clusters"),
    ):
        path.write_text(json.dumps({**contents, "clusters": clusters}))
        with pytest.raises(UserError, match=complaint):
            load_model(run)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UserError, match=name):
        load_model(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"config.json"):
        load_model(tmp_path)


def state(step: int) -> TrainingState:
    tensors = {"w": torch.full((1000,), float(step))}
    return TrainingState(step, None, 0, tensors, {"exp_avg/w": tensors["w"] * 2})


def test_checkpoints_come_back_and_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.latest_checkpoint() is None
    for step in (5, 10, 15):
        run.save_checkpoint(state(step))
    names = sorted(p.name for p in run.checkpoints.iterdir())
    assert names == ["latest", "step-00000010", "step-00000015"]
    loaded = run.latest_checkpoint()
    assert loaded is not None
    assert loaded.step == 15
    assert torch.equal(loaded.optimizer["exp_avg/w"], torch.full((1000,), 30.0))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    np.save(tmp_path / "other.npy", np.zeros(1))
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file.txt" / "below", "new")  # a file is no folder
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "other.npy"]
