"""A sweep trains each combination once, measures it, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, newest, silent, write_pictures
from igpt.checkpoint import RunDirectory
from igpt.config import Diverged, Recipe, UserError
from igpt.data.decode import decode_all
from igpt.data.sources import open_source
from igpt.monitor import Monitor
from igpt.pipeline import load
from igpt.plots.curves import save_figure, sweep_figure
from igpt.pretrain import Pretrained, pretrain
from igpt.sweep import Point, Result, make_points, sweep

GRID = ["image_size=4,6", "colors=3,5"]
NAMES = [f"image_size={size},colors={colors}" for size in (4, 6) for colors in (3, 5)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few digits, with labels and without."""
    folder, digits = tmp_path_factory.mktemp("data"), open_source("digits")
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 80), ("test", 30)):
        pictures = digits.split(split)
        assert pictures.array is not None
        assert pictures.labels is not None
        arrays[f"x_{split}"] = pictures.array[:count]
        arrays[f"y_{split}"] = pictures.labels[:count]
    np.savez(folder / "labelled.npz", **arrays)
    np.savez(folder / "bare.npz", x_train=arrays["x_train"], x_test=arrays["x_test"])
    return folder


def points(data: Path, out: Path, grid: list[str], *changes: str) -> list[Point]:
    source = f"data.source={data / 'labelled.npz'}"
    return make_points("digits", grid, [*TINY, "train.steps=4", source, *changes], out)


@pytest.fixture(scope="module")
def swept(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    out = tmp_path_factory.mktemp("sweep")
    return out, sweep(points(data, out, GRID), out, None, silent).results


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained, or asked to go on."""
    names: list[str] = []

    def spy(recipe: object, out: Path, **words: object) -> Pretrained:
        names.append(out.name)
        return pretrain(recipe, out, **words)  # type: ignore[arg-type]

    monkeypatch.setattr("igpt.sweep.pretrain", spy)
    return names


def test_every_combination_is_a_run_with_its_own_recipe(
    swept: tuple[Path, list[Result]],
) -> None:
    out, results = swept
    assert [result.name for result in results] == NAMES
    for name in NAMES:
        recipe = RunDirectory(out / name).recipe()
        assert f"image_size={recipe.data.image_size},colors={recipe.palette.colors}" == name
        assert recipe.model.n_layer == 2
    saved = json.loads((out / "sweep.json").read_text())
    assert saved == {"runs": [asdict(result) for result in results]}


def test_what_is_reported_is_what_the_run_is(swept: tuple[Path, list[Result]], data: Path) -> None:
    out, results = swept
    test = open_source(str(data / "labelled.npz")).split("test")
    for result in results:
        p = load(out / result.name)
        rows = (out / result.name / "metrics.jsonl").read_text().splitlines()
        losses = [row["val_loss"] for row in map(json.loads, rows) if "val_loss" in row]
        likelihood = p.likelihood(decode_all(test, p.image_size).images)
        n_pixels = p.image_size**2
        assert result.val_nats_per_pixel == pytest.approx(min(losses))
        assert result.val_nats_per_picture == pytest.approx(min(losses) * n_pixels)
        assert result.test_nats_per_pixel == pytest.approx(likelihood.nats_per_pixel)
        assert result.test_nats_per_picture == pytest.approx(likelihood.nats_per_picture)
        assert result.parameters == sum(w.numel() for w in p.model.parameters())
        assert result.accuracy is not None
        assert 0.2 < result.accuracy <= 1  # chance is 0.1
        assert 0.2 < (result.val_accuracy or 0) <= 1
        assert result.minutes > 0


def test_the_cost_is_six_flops_a_weight_and_twelve_a_place_attended_to(
    swept: tuple[Path, list[Result]],
) -> None:
    out, results = swept
    for result in results:
        model = load(out / result.name).model
        c, used = model.config, ("blocks", "head")
        weights = sum(
            w.numel()
            for name, w in model.named_parameters()
            if name.startswith(used) and w.ndim > 1
        )
        per_token = 6 * weights + 12 * c.n_layer * c.n_embd * c.n_positions
        assert result.flops == 4 * 8 * c.n_positions * per_token  # 4 steps of 8 pictures


def test_a_second_sweep_trains_nothing_and_a_wider_grid_only_what_is_new(
    swept: tuple[Path, list[Result]], data: Path, trained: list[str]
) -> None:
    out, results = swept
    written = (out / "sweep.json").stat().st_mtime_ns
    assert sweep(points(data, out, GRID), out, None, silent).results == results
    assert trained == []
    assert (out / "sweep.json").stat().st_mtime_ns == written
    wider = ["image_size=4", "colors=2,3"]
    names = [r.name for r in sweep(points(data, out, wider), out, None, silent).results]
    assert names == ["image_size=4,colors=2", "image_size=4,colors=3"]
    assert trained == ["image_size=4,colors=2"]
    assert len(json.loads((out / "sweep.json").read_text())["runs"]) == 5


def test_other_labels_are_measured_without_training_again(
    swept: tuple[Path, list[Result]], data: Path
) -> None:
    out, results = swept
    chosen = points(data, out, ["image_size=4", "colors=5"])
    metrics = (chosen[0].run.metrics).read_bytes()
    (few,) = sweep(chosen, out, 2, silent).results
    assert chosen[0].run.metrics.read_bytes() == metrics
    assert few.labels_per_class == 2
    assert few.accuracy is not None
    assert few.accuracy != results[1].accuracy
    assert few.test_nats_per_pixel == results[1].test_nats_per_pixel
    with pytest.raises(UserError, match="99 were asked for"):
        sweep(chosen, out, 99, silent)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_the_run_and_the_sweep_goes_on_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    log: Callable[..., None] = Monitor.log

    def kill(monitor: Monitor, row: dict[str, float]) -> None:
        log(monitor, row)
        if monitor.path.parent.name == "colors=5" and row["step"] == 2:
            os.kill(os.getpid(), signal.Signals[name])

    grid = points(data, tmp_path, ["colors=3,5,7"])
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "log", kill)
        stopped = sweep(grid, tmp_path, None, silent)
    assert [result.name for result in stopped.results] == ["colors=3"]
    assert stopped.stopped is not None
    point, outcome = stopped.stopped
    assert (point.name, outcome.signal) == ("colors=5", signal.Signals[name])
    state, _ = newest(point.run.path)
    assert state.step == outcome.step < 4
    assert not (tmp_path / "colors=7").exists()

    said: list[str] = []
    done = sweep(grid, tmp_path, None, said.append)
    assert done.stopped is None
    assert [result.name for result in done.results] == ["colors=3", "colors=5", "colors=7"]
    assert done.results[0] == stopped.results[0]
    assert f"resuming at step {state.step} of 4" in said


def interrupt(*_args: object, **_words: object) -> Pretrained:
    raise KeyboardInterrupt


def test_a_run_that_was_removed_is_trained_again(
    data: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = points(data, tmp_path, ["colors=3"])
    sweep(grid, tmp_path, None, silent)
    (tmp_path / "colors=3").rename(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr("igpt.sweep.measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep(grid, tmp_path, None, silent)
    assert json.loads((tmp_path / "sweep.json").read_text()) == {"runs": []}
    sweep(grid, tmp_path, None, silent)
    assert trained == ["colors=3"] * 3


def test_pictures_without_labels_have_no_accuracy(data: Path, tmp_path: Path) -> None:
    changes = [*TINY[1:], "train.steps=1", f"data.source={data / 'bare.npz'}"]
    grid = make_points("digits", ["objective=ar,bert", "order=snake"], changes, tmp_path)
    said: list[str] = []
    swept = sweep(grid, tmp_path, None, said.append)
    assert [result.accuracy for result in swept.results] == [None, None]
    assert sum("no labels" in line for line in said) == 2
    assert all(result.test_nats_per_pixel > 0 for result in swept.results)
    with pytest.raises(UserError, match="no labels to take 3 a class of"):
        sweep(grid, tmp_path, 3, silent)
    save_figure(sweep_figure(swept.results), tmp_path / "sweep.png")  # of one panel
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_tested_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", *(f"{s}/{i}.png" for s in ("train", "val") for i in range(4)))
    changes = [*TINY[1:], f"data.source={tmp_path / 'set'}"]
    grid = make_points("digits", ["colors=4,5"], changes, tmp_path / "out")
    with pytest.raises(UserError, match="no split 'test', only: train, val"):
        sweep(grid, tmp_path / "out", None, silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("image_size", "data.image_size"),
        ("colors", "palette.colors"),
        ("order", "order"),
        ("objective", "objective"),
        ("model", "model.preset"),
        ("n_embd", "model.n_embd"),
        ("train.lr", "train.lr"),
        ("seed", "train.seed"),
    ],
)
def test_a_name_of_the_grid_stands_for_the_field_that_ends_so(
    tmp_path: Path, name: str, field: str
) -> None:
    value = {
        "order": "snake", "objective": "bert", "model": "igpt-micro", "train.lr": "0.5"
    }.get(name, "12")  # fmt: skip
    (point,) = make_points("digits", [f"{name}={value}"], [], tmp_path)
    assert point.name == f"{name}={value}"
    found: object = point.recipe
    for part in field.split("."):
        found = getattr(found, part)
    assert str(found) == value


def test_a_value_with_a_slash_is_one_folder(tmp_path: Path) -> None:
    (point,) = make_points("digits", ["source=some/set"], [], tmp_path)
    assert point.run.path == tmp_path / "source=some_set"
    (point,) = make_points("digits", ["order=random:1"], [], tmp_path)
    assert point.run.path == tmp_path / "order=random_1"  # Windows takes no colons
    with pytest.raises(UserError, match="two of its points have the name source=some_set"):
        make_points("digits", ["source=some/set,some:set"], [], tmp_path)


MISTAKES = [
    ([], [], "the grid is empty"),
    (["image_size"], [], "expected a field and values"),
    (["image_size="], [], "expected a field and values"),
    (["image_size=4,,6"], [], "expected a field and values"),
    (["colors=4,4"], [], "a field or a value is given twice"),
    (["colors=4", "colors=5"], [], "a field or a value is given twice"),
    (["colors=4", "palette.colors=5"], [], "palette.colors, which is given already"),
    (["colors=4"], ["palette.colors=5"], "palette.colors, which is given already"),
    (["colors=4"], ["palette.path=p.npy"], "the palette p.npy has its own colours"),
    (["shape=4"], [], "'shape' is no one field of a recipe"),
    (["data=4"], [], "'data' is no one field of a recipe"),
    (["colors=4,many"], [], "palette.colors"),
    (["colors=4,0"], [], "palette.colors must be 2"),
    (["order=raster,spiral"], [], "unknown order 'spiral'"),
    (["n_embd=16,17"], [], "n_embd .17. must be a multiple of n_head"),
    (["colors=4"], ["train.speed=1"], "unknown field 'train.speed'"),
]


@pytest.mark.parametrize(("grid", "changes", "complaint"), MISTAKES)
def test_a_mistake_is_found_before_anything_is_trained(
    tmp_path: Path, grid: list[str], changes: list[str], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        make_points("digits", grid, changes, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_name_that_two_sections_have_is_refused_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = dict.fromkeys(["data.seed", "train.seed", "order"])
    monkeypatch.setattr("igpt.sweep.flat_fields", lambda _recipe: fields)
    with pytest.raises(UserError, match=r"'seed' is no one field .* one of: data.seed, train.seed"):
        make_points("digits", ["seed=1"], [], tmp_path)


def test_a_folder_that_holds_other_runs_is_refused(
    swept: tuple[Path, list[Result]], data: Path, tmp_path: Path
) -> None:
    out, _ = swept
    with pytest.raises(UserError, match=r"another train\.lr"):
        points(data, out, GRID, "train.lr=0.5")
    (tmp_path / "sweep.json").write_text('{"runs": [{"name": "a"}]}')
    with pytest.raises(UserError, match="does not hold a sweep"):
        sweep(points(data, tmp_path, ["colors=3"]), tmp_path, None, silent)


def test_what_was_compiled_for_one_shape_is_forgotten_before_the_next(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[None] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    monkeypatch.setattr("igpt.sweep.pretrain", interrupt)
    for compiled, expected in (("false", 0), ("true", 1)):
        grid = points(data, tmp_path, ["colors=3"], f"train.compile={compiled}")
        with pytest.raises(KeyboardInterrupt):
            sweep(grid, tmp_path, None, silent)
        assert len(resets) == expected


def test_a_point_that_diverges_is_left_out_and_the_others_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(recipe: Recipe, *args: object, **words: object) -> Pretrained:
        if recipe.train.lr == 1:
            raise Diverged("the loss is nan")
        return pretrain(recipe, *args, **words)  # type: ignore[arg-type]

    monkeypatch.setattr("igpt.sweep.pretrain", diverging)
    said: list[str] = []
    chosen = points(data, tmp_path, ["image_size=4", "lr=1,0.001"])
    swept = sweep(chosen, tmp_path, 2, said.append)
    assert swept.diverged == ["image_size=4,lr=1"]
    assert [result.name for result in swept.results] == ["image_size=4,lr=0.001"]
    assert "warning: image_size=4,lr=1 is left out: the loss is nan" in said
