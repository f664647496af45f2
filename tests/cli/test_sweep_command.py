"""sweep through the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from conftest import TINY, assert_mistake, is_sheet, signalled_pretrain
from igpt.config import Diverged

FAST = [*TINY[1:], "train.steps=2"]


def test_a_sweep_leaves_runs_a_table_and_a_figure(igpt, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    words = ("sweep", "digits", "--grid", "image_size=2,4", "--out", out, *FAST)
    result = igpt(*words, "--labels-per-class", 3)
    assert result.status == 0, result.err
    assert is_sheet(out / "sweep.png")
    assert {path.name for path in out.iterdir()} == {
        "image_size=2", "image_size=4", "sweep.json", "sweep.png"
    }  # fmt: skip
    head, *rows = result.out.splitlines()[1:4]
    assert head.split()[0] == "parameters"
    assert [row.split()[0] for row in rows] == ["image_size=2", "image_size=4"]
    assert all(len(row.split()) == 12 for row in rows)

    values = json.loads(igpt(*words, "--labels-per-class", 3, "--json").out)
    assert values["runs"] == json.loads((out / "sweep.json").read_text())["runs"]
    for row, run in zip(rows, values["runs"], strict=True):
        assert f"{run['test_nats_per_picture']:.1f}" in row
        accuracy, deviation = run["accuracy"], run["accuracy_deviation"]
        assert row.endswith(f"{100 * accuracy:.1f}  ± {100 * deviation:.1f}")
        assert run["labels_per_class"] == 3
    # Its runs have an = in their names, which is no field of a recipe.
    finetuned = igpt("finetune", out / "image_size=4", "--out", tmp_path / "ft", "--steps", 1)
    assert finetuned.status == 0, finetuned.err
    evaluated = json.loads(igpt("eval", out / "image_size=4", "--json").out)
    assert evaluated["nats_per_picture"] == pytest.approx(
        values["runs"][1]["test_nats_per_picture"]
    )


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_signal_ends_it_with_the_line_that_goes_on(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    monkeypatch.setattr("igpt.sweep.pretrain", signalled_pretrain(name))
    words = ("sweep", "digits", *FAST, "--data", "digits", "--seed", "1")
    words += ("--grid", "colors=3,5", "--out", str(tmp_path / "a sweep"))
    result = igpt(*words)
    assert result.status == status, result.err
    (line,) = result.out.splitlines()
    assert line.startswith("stopped at step 2 of colors=3; go on with: igpt sweep digits ")
    fields = shlex.join(["data.source=digits", "train.seed=1", *FAST])  # the last of two counts
    assert line.endswith(f" {fields} --grid colors=3,5 --out '{tmp_path / 'a sweep'}'")
    assert json.loads(igpt(*words, "--json").out)["signal"] == name


MISTAKES = [
    (["--grid", "colors=3", "--out", "{tmp}/s"], "expected one recipe, got none"),
    (["digits", "emoji32", "--grid", "colors=3", "--out", "{tmp}/s"], "got digits emoji32"),
    (["cifar", "--grid", "colors=3", "--out", "{tmp}/s"], "unknown recipe 'cifar'"),
    (["digits", "--out", "{tmp}/s"], "--grid"),
    (["digits", "--grid", "--out", "{tmp}/s"], "--grid"),
    (["digits", "--grid", "shades=3", "--out", "{tmp}/s"], "'shades' is no one field"),
    (["digits", "--grid", "colors=3,x", "--out", "{tmp}/s"], "palette.colors"),
    (["digits", "--grid", "colors=3", "--out", "{tmp}/s", "train.x=1"], "unknown field 'train.x'"),
    (["digits", "--grid", "colors=3", "--out", "{tmp}/s", "data.source={tmp}/no"], "no data at"),
    (["digits", "--grid", "colors=3", "--out", "{tmp}/s", "--data", "{tmp}/no"], "no data at"),
    (["digits", "--grid", "source=digits,{tmp}/no", "--out", "{tmp}/s"], "no data at"),
    (["digits", "--grid", "path={tmp}/no.npy", "--out", "{tmp}/s"], "no palette file"),
    (
        ["digits", "--grid", "colors=3", "--out", "{tmp}/s", "--labels-per-class", "0"],
        "from 1 or all",
    ),
    (
        ["digits", "--grid", "colors=3", "--out", "{tmp}/s", "--labels-per-class", "900"],
        "900 were asked for",
    ),
]


@pytest.mark.parametrize(("argv", "complaint"), MISTAKES)
def test_a_mistake_gives_one_line_status_2_and_leaves_nothing(
    igpt, tmp_path: Path, argv: list[str], complaint: str
) -> None:
    result = igpt("sweep", *[word.format(tmp=tmp_path) for word in argv])
    assert_mistake(result, complaint)
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_which_nothing_is_left_is_a_mistake(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*_: object, **__: object) -> None:
        raise Diverged("the loss is nan")

    monkeypatch.setattr("igpt.sweep.pretrain", diverging)
    result = igpt("sweep", "digits", "--grid", "lr=1,2", "--out", tmp_path / "sweep", *FAST)
    assert_mistake(result, "every run diverged")
    assert result.err.count("is left out: the loss is nan") == 2
