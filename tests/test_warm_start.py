"""Pretraining that goes on from a trained model: its weights, palette, order, shape and splits."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import igpt
from conftest import assert_mistake, load_model, silent, tiny_recipe, write_classes
from igpt.checkpoint import RunDirectory
from igpt.config import ModelConfig, Recipe, UserError
from igpt.data.sources import open_data
from igpt.data.splits import training_splits
from igpt.finetune import finetune
from igpt.folder import save_model
from igpt.monitor import read_metrics
from igpt.order import Codec
from igpt.palette import Palette
from igpt.pretrain import pretrain, pretrain_recipe
from igpt.recipes import recipe_yaml, with_overrides
from igpt.run import settle_recipe
from test_finetune import names
from test_finetune import recipe as finetuning
from test_model import random_model

STILL = ("train.steps=1", "train.lr=1e-12", "train.batch_size=8")


def go_on(start: Path, out: Path, *changes: str) -> Recipe:
    recipe = with_overrides(pretrain_recipe(start), changes, "test")
    pretrain(recipe, out, resume=False, say=silent)
    return recipe


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = (load_model(folder)[0].state_dict() for folder in (a, b))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.allclose(tensor, right[name], atol=1e-6), name


def losses(out: Path) -> list[object]:
    return [(row["step"], row.get("loss")) for row in read_metrics(out / "metrics.jsonl")]


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_a_run_begins_where_the_model_ended(tmp_path: Path, objective: str) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    first = tiny_recipe(f"objective={objective}", "order=snake", "train.seed=3")
    pretrain(first, start, resume=False, say=silent)
    second = go_on(start, out, *STILL)
    assert_same_weights(start, out)
    codecs = [load_model(folder)[1] for folder in (start, out)]
    assert np.array_equal(codecs[0].palette.clusters, codecs[1].palette.clusters)
    assert codecs[1].order == "snake"
    # What the model was chosen by is not learned from now.
    held_out = [
        names(training_splits(open_data(r.data), r.data, r.split_seed)[1]) for r in (first, second)
    ]
    assert held_out[0] == held_out[1]


def test_it_is_trained_as_it_was_at_a_tenth_of_the_rate_with_other_batches(
    tiny_run: Path, tmp_path: Path
) -> None:
    start, classes = (Path(shutil.copytree(tiny_run, tmp_path / name)) for name in "ab")
    division = ("train.micro_batch_size=4", "train.activation_checkpointing=true")
    first = tiny_recipe("train.seed=3", "train.grad_clip=0.5", *division)
    (start / "recipe.yaml").write_text(recipe_yaml(first))
    second = pretrain_recipe(start)
    expected = replace(
        first.train, lr=first.train.lr / 10, seed=4, micro_batch_size=None,
        activation_checkpointing=False,
    )  # fmt: skip
    assert replace(second.train, lr=expected.lr) == expected
    assert second.train.lr == pytest.approx(expected.lr)
    # A fine-tuning's patience and constant rate are not what pretraining takes.
    (classes / "recipe.yaml").write_text(recipe_yaml(finetuning(start)))
    third = pretrain_recipe(classes).train
    assert (third.patience, third.schedule, third.precision) == (None, "cosine", "float32")


def test_a_run_is_not_gone_on_with_in_other_colours(tiny_run: Path, tmp_path: Path) -> None:
    start, out = Path(shutil.copytree(tiny_run, tmp_path / "start")), tmp_path / "out"
    go_on(start, out)
    processor = start / "preprocessor_config.json"
    described = json.loads(processor.read_text())
    described["clusters"].reverse()
    processor.write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"another palette than when .*out began"):
        pretrain(None, out, resume=True, say=silent)


@pytest.mark.usefixtures("on_processor")
def test_a_run_that_was_stopped_goes_on_to_the_bit(tiny_run: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recipe = go_on(tiny_run, whole)
    go_on(tiny_run, parts, "train.steps=8")
    (parts / "recipe.yaml").write_text(recipe_yaml(recipe))
    (parts / "checkpoints" / "latest").write_text("step-00000004\n")
    pretrain(None, parts, resume=True, say=silent)
    assert losses(parts) == losses(whole)
    assert_same_weights(parts, whole)


def test_a_model_folder_made_elsewhere_keeps_its_shape(tmp_path: Path) -> None:
    shape = ModelConfig(2, 2, 16, 11, 16, bias=True, activation="relu")
    palette = Palette(np.linspace(-1, 1, 33, dtype=np.float32).reshape(11, 3))
    save_model(tmp_path / "theirs", random_model(shape), Codec(palette, "raster", 4))
    with pytest.raises(UserError, match="names no data: give --data"):
        go_on(tmp_path / "theirs", tmp_path / "out")
    go_on(tmp_path / "theirs", tmp_path / "out", *STILL, "data.source=digits")
    assert load_model(tmp_path / "out")[0].config == shape
    assert_same_weights(tmp_path / "theirs", tmp_path / "out")


def test_a_classifier_becomes_a_model_of_pictures_again(tiny_run: Path, tmp_path: Path) -> None:
    finetune(finetuning(tiny_run, "train.steps=4"), tmp_path / "c", resume=False, say=silent)
    go_on(tmp_path / "c", tmp_path / "out", *STILL)
    ours, theirs = (load_model(tmp_path / name)[0] for name in ("out", "c"))
    assert ours.config == replace(theirs.config, n_classes=0)
    assert torch.allclose(ours.wte, theirs.wte, atol=1e-6)
    assert len(igpt.load(tmp_path / "out").sample(1)) == 1


@pytest.mark.parametrize(
    "change",
    [
        "order=column",
        "data.image_size=9",
        "model.n_layer=3",
        "model.preset=igpt-l",
        "palette.colors=5",
        "objective=bert",
    ],
)
def test_what_the_model_settles_cannot_be_changed(
    tiny_run: Path, tmp_path: Path, change: str
) -> None:
    with pytest.raises(UserError, match="are those of the model that it starts from"):
        go_on(tiny_run, tmp_path / "out", change)
    assert not (tmp_path / "out" / "recipe.yaml").exists()


def test_a_run_knows_the_model_it_began_with_from_any_working_directory(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run.parent)
    written = replace(pretrain_recipe(tiny_run), init_from=tiny_run.name)
    settled = settle_recipe(written, RunDirectory(tmp_path / "run"), False, "pretrain")
    assert settled.init_from == str(tiny_run)


def test_a_finished_run_is_trained_on_by_the_command_line(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "longer"
    words = ("pretrain", "--init-from", tiny_run, "--steps", 4, "--out", out)
    result = igpt(*words)
    assert result.status == 0, result.err
    assert f"init_from: {tiny_run}" in (out / "recipe.yaml").read_text()
    assert f"{tiny_run}" in igpt("info", out).out
    assert igpt(*words, "--resume").status == 0  # the same words, and nothing is left to do
    longer = igpt("pretrain", "--out", out, "--resume", "--steps", 5)
    assert longer.status == 2
    assert "has another train.steps; without these options it goes on" in longer.err


def test_what_an_earlier_run_learned_from_is_not_tested_on_in_silence(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", images=images)
    second, third = tmp_path / "second", tmp_path / "third"
    for start, out in ((tiny_run, second), (second, third)):
        go_on(start, out, f"data.source={tmp_path / 'other.npz'}", "train.steps=2")
    tested = igpt("eval", third, "--data", "digits", "--limit", 4)
    assert tested.status == 0
    assert f"the run began from {tiny_run}, which learned from digits" in tested.err
    own = igpt("eval", third, "--limit", 4)
    assert "began from" not in own.err


def test_a_run_that_lies_where_its_start_lay_is_tested_on_other_pictures(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    for name in ("other", "third"):
        images = np.random.default_rng(len(name)).integers(0, 256, (40, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
    start, longer = Path(shutil.copytree(tiny_run, tmp_path / "start")), tmp_path / "longer"
    go_on(start, longer, f"data.source={tmp_path / 'other.npz'}", "train.steps=2")
    shutil.rmtree(start)
    longer.rename(start)  # its recipe names itself now
    tested = igpt("eval", start, "--data", tmp_path / "third.npz", "--limit", 4)
    assert tested.status == 0, tested.err
    assert "began from" not in tested.err


def test_other_pictures_need_no_validation_split_of_a_run_whose_own_are_gone(
    igpt, tmp_path: Path
) -> None:
    mine, other = write_classes(tmp_path / "mine", 6, 4), write_classes(tmp_path / "other", 6, 4)
    shutil.copytree(mine / "train", mine / "validation")
    words = (f"data.source={mine}", "data.validation_split=validation", "train.steps=2")
    pretrain(tiny_recipe(*words), tmp_path / "run", resume=False, say=silent)
    shutil.rmtree(mine)
    tested = igpt("eval", tmp_path / "run", "--data", other)
    assert tested.status == 0, tested.err


def test_another_part_held_out_than_the_start_held_out_is_told(
    tiny_run: Path, tmp_path: Path
) -> None:
    other = "data.validation_fraction=0.3"
    told = r"held out other pictures of digits: some of what is validated on may"
    with pytest.warns(UserWarning, match=told):
        go_on(tiny_run, tmp_path / "out", *STILL, other)
    pictures = write_classes(tmp_path / "pictures", 20, 4)
    shutil.copytree(pictures / "test", pictures / "validation")  # so that none are drawn
    start, out = tmp_path / "start", tmp_path / "next"
    words = (f"data.source={pictures}", "train.steps=2")
    pretrain(tiny_recipe(*words), start, resume=False, say=silent)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        go_on(start, out, *STILL, other)


def test_a_run_whose_start_was_moved_goes_on_from_where_it_is_now(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    start, moved, out = tmp_path / "start", tmp_path / "moved", tmp_path / "out"
    shutil.copytree(tiny_run, start)
    assert igpt("pretrain", "--init-from", start, "--steps", 4, "--out", out).status == 0
    (out / "checkpoints" / "latest").unlink()
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    start.rename(moved)
    gone = igpt("pretrain", "--out", out, "--resume")
    assert_mistake(gone, f"{start}, which the run starts from, is gone: if it was moved, name it")
    resumed = igpt("pretrain", "--init-from", moved, "--out", out, "--resume")
    assert resumed.status == 0, resumed.err
