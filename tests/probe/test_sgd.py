"""The probe by SGD: as good as L-BFGS, the same on several processes, and used like any other."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import several
from conftest import assert_mistake, silent, tiny_recipe, write_classes
from igpt.config import DataConfig, UserError
from igpt.data.labels import open_large_task
from igpt.data.sources import open_source
from igpt.pipeline import load
from igpt.pretrain import pretrain
from igpt.probe import sgd
from igpt.probe.features import Extractor, make_pool
from igpt.probe.unfinished import UNFINISHED, Unfinished


def probed(igpt, run: Path, out: Path, *words: object) -> dict[str, object]:
    result = igpt("probe", run, "--pool", "grid:2", "--out", out, "--json", *words)
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_sgd_agrees_with_lbfgs_and_predict_takes_its_probe(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    exact = probed(igpt, tiny_run, tmp_path / "lbfgs")
    sgd = ["--solver", "sgd", "--augmentation", "none", "--epochs", 40]
    found = probed(igpt, tiny_run, tmp_path / "sgd", *sgd)
    assert list(found["validation_by_layer"]) == ["0", "1", "2"]
    ours_by_layer, theirs_by_layer = (
        np.mean(list(values["validation_by_layer"].values())) for values in (found, exact)
    )
    assert ours_by_layer == pytest.approx(theirs_by_layer, abs=0.03)  # of 150 pictures
    (ours,), (theirs,) = found["summaries"], exact["summaries"]
    assert ours["accuracy"][0] == pytest.approx(theirs["accuracy"][0], abs=0.04)
    assert ours["accuracy"][0] > 0.5
    predicted = igpt("predict", tiny_run, "--probe", tmp_path / "sgd", "--json")
    assert json.loads(predicted.out)["accuracy"] == pytest.approx(ours["accuracy"][0], abs=0.01)


@pytest.mark.usefixtures("on_processor")
def test_a_killed_fit_goes_on_and_gives_the_same_probe(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    words = ["--solver", "sgd", "--augmentation", "cifar", "--epochs", "8", "--layer", "1"]
    assert igpt("probe", tiny_run, *words, "--out", tmp_path / "whole").status == 0
    out = tmp_path / "killed"
    running = several.igpt(1, "probe", tiny_run, *words, "--out", out)
    while not (out / UNFINISHED).exists():
        assert running.processes[0].exitcode is None, running.err
        time.sleep(0.01)
    running.send(signal.SIGKILL, [0])
    assert running.wait() == [-signal.SIGKILL]
    assert not (out / "probe.safetensors").exists()
    again = ["probe", tiny_run, *words, "--out", out]
    assert_mistake(igpt(*again), "is of a fit that was cut short: --resume it, or remove it")
    assert_mistake(igpt(*again, "--resume", "--lr", 1), "is of another fit: its options differ")
    resumed = igpt(*again, "--resume")
    assert resumed.status == 0, resumed.err
    assert "SGD goes on at step" in resumed.err
    assert not (out / UNFINISHED).exists()
    ours, theirs = (
        load_file(tmp_path / name / "probe.safetensors") for name in ("killed", "whole")
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in ("weight", "bias"))


def test_a_fit_does_not_go_on_with_other_pictures(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for name, shown in (("a", images), ("b", 255 - images)):
        np.savez(tmp_path / f"{name}.npz", images=shown, labels=np.arange(40) % 2)
    words = [
        "probe",
        tiny_run,
        "--solver",
        "sgd",
        "--augmentation",
        "none",
        "--out",
        tmp_path / "p",
    ]

    def full(*_args: object) -> None:
        raise UserError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("igpt.probing.save_probe", full)
        assert_mistake(igpt(*words, "--data", tmp_path / "a.npz"), "no space left")
    resumed = igpt(*words, "--resume", "--data", tmp_path / "b.npz")
    assert_mistake(resumed, "is of another fit: its labelled pictures differ")


def test_a_fit_is_kept_until_its_probe_is(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--solver", "sgd", "--augmentation", "none", "--epochs", 3, "--out", tmp_path]

    def full(*_args: object) -> None:
        raise UserError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("igpt.probing.save_probe", full)
        assert_mistake(igpt("probe", tiny_run, *words), "no space left")
    resumed = igpt("probe", tiny_run, *words, "--resume")
    assert "SGD goes on at step 4 of 4" in resumed.err
    assert [(tmp_path / name).exists() for name in (UNFINISHED, "probe.safetensors")] == [
        False,
        True,
    ]


def test_what_is_left_of_a_fit_may_be_broken(igpt, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / UNFINISHED).write_bytes(b"{}")
    words = ["--solver", "sgd", "--augmentation", "none", "--resume", "--out", tmp_path]
    assert_mistake(igpt("probe", tiny_run, *words), f"{UNFINISHED} is broken")


def test_augmented_features_are_drawn_anew_for_every_batch(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    words = ["--solver", "sgd", "--layer", 1, "--epochs", 3, "--lr", 0.3]
    plain = probed(igpt, tiny_run, tmp_path / "none", *words, "--augmentation", "none")
    moved = probed(igpt, tiny_run, tmp_path / "cifar", *words, "--augmentation", "cifar")
    assert moved["summaries"] != plain["summaries"]


def test_training_pictures_are_opened_when_it_is_their_turn(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, measured, batch = load(tiny_run), 4, 5
    source = open_source(str(write_classes(tmp_path, 60, 2)))
    task = open_large_task(source, DataConfig(), pipeline.codec, seed=0)
    opened, at_steps = [], []

    def open_image(i: int) -> Image.Image:
        opened.append(i)
        return task.train.pictures.open_image(i)

    class Watched(Extractor):
        def batch(self, tokens: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
            at_steps.append(len(opened))
            return super().batch(tokens, start)

    monkeypatch.setattr(sgd, "MEASURED", measured)
    pool = make_pool("mean", pipeline.codec)
    extractor = Watched(pipeline.model, pipeline.codec, pool, {"1": (1,)}, torch.float32)
    watched = replace(task.train, pictures=replace(task.train.pictures, open_image=open_image))
    config = sgd.SGDConfig(epochs=1, batch_size=batch, rates=(0.3,), augmentation="flip")
    sgd.fit_sgd(
        extractor,
        watched,
        task.validation,
        metric="accuracy",
        config=config,
        unfinished=Unfinished(tmp_path / "fit", "{}"),
        say=silent,
    )
    assert len(at_steps) == -(-len(task.train) // batch)
    for step, count in enumerate(at_steps):  # its own pictures, and perhaps those of the next step
        assert measured + (step + 1) * batch <= count <= measured + (step + 2) * batch
    assert set(opened) == set(range(len(task.train)))


@pytest.fixture(scope="module")
def cropped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on ImageNet's random crops of two classes in folders; tests must not write into it."""
    folder = tmp_path_factory.mktemp("cropped")
    source = f"data.source={write_classes(folder / 'pictures', 40, 12)}"
    words = [source, "data.image_size=8", "data.augmentation=imagenet", "train.steps=2"]
    pretrain(tiny_recipe(*words, "palette.colors=16"), folder / "run", resume=False, say=silent)
    return folder / "run"


FAST = ["--solver", "sgd", "--layer", 1, "--epochs", 4, "--batch-size", 8, "--lr", 0.3]


@pytest.mark.usefixtures("on_processor")
def test_a_run_on_imagenet_crops_is_probed_with_imagenet_crops(
    igpt, cropped_run: Path, tmp_path: Path
) -> None:
    def weight(name: str, *words: object) -> np.ndarray:
        values = probed(igpt, cropped_run, tmp_path / name, *FAST, *words)
        assert values["summaries"][0]["accuracy"][0] > 0.9  # dark from light
        return load_file(tmp_path / name / "probe.safetensors")["weight"]

    own = weight("own")
    assert np.array_equal(own, weight("imagenet", "--augmentation", "imagenet"))
    assert not np.array_equal(own, weight("none", "--augmentation", "none"))
    predicted = json.loads(igpt("predict", cropped_run, "--probe", tmp_path / "own", "--json").out)
    assert predicted["accuracy"] > 0.9


def test_unreadable_pictures_are_replaced_or_left_out_and_named(
    igpt, cropped_run: Path, tmp_path: Path
) -> None:
    data = write_classes(tmp_path / "pictures", 40, 12)
    for path in ("train/dark/6.png", "train/light/9.png", "test/dark/4.png"):
        (data / path).write_bytes(b"no picture")
    words = ["--data", data, "--pool", "grid:2", "--json"]
    result = igpt("probe", cropped_run, *FAST, *words, "--out", tmp_path / "probe")
    assert result.status == 0, result.err
    for name in ("6.png", "9.png", "4.png"):
        assert name in result.err
    assert json.loads(result.out)["summaries"][0]["accuracy"][0] > 0.9


def test_a_set_without_a_readable_picture_is_one_line(
    igpt, cropped_run: Path, tmp_path: Path
) -> None:
    data = write_classes(tmp_path / "pictures", 40, 12)
    for path in (data / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    result = igpt("probe", cropped_run, *FAST, "--data", data, "--out", tmp_path / "probe")
    assert_mistake(result, "can be read")
    assert not (tmp_path / "probe").exists()


def test_imagenet_crops_need_pictures_and_sgd(igpt, tiny_run: Path, tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    tokens = np.random.default_rng(0).integers(0, 16, (40, 64))
    data, crops = tmp_path / "tokens.npz", ["--augmentation", "imagenet"]
    np.savez(data, x_train=tokens, y_train=labels, x_test=tokens, y_test=labels)
    words = ["probe", tiny_run, "--data", data, "--out", tmp_path / "out"]
    assert_mistake(igpt(*words, *FAST, *crops), "imagenet crops pictures, and the data are tokens")
    assert_mistake(igpt(*words, *crops), "needs --solver sgd")
    assert not (tmp_path / "out").exists()
    assert igpt(*words, *FAST, "--augmentation", "cifar").status == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--labels-per-class", 4], "--solver sgd takes all labels"),
        (["--baselines"], "--baselines: not with --solver sgd"),
        (["--head", "attention"], "--head: not with --solver sgd"),
        (["--pca", 0], "--pca: not with --solver sgd"),
        (["--lr", 0], "must be above 0"),
        (["--epochs", 0], "must be above 0"),
    ],
)
def test_mistakes_are_one_line(
    igpt, tiny_run: Path, tmp_path: Path, words: list[object], complaint: str
) -> None:
    out = tmp_path / "out"
    assert_mistake(igpt("probe", tiny_run, "--solver", "sgd", "--out", out, *words), complaint)
    assert not out.exists()
