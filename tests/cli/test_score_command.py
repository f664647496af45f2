"""`igpt score` through its entry point: files, values, and mistakes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import igpt as package
from conftest import assert_mistake, is_sheet, picture_bytes
from igpt.config import ModelConfig
from igpt.folder import save_model
from igpt.order import Codec
from igpt.palette import Palette
from igpt.plots.scores import extremes_sheet, surprise_sheet
from test_model import random_model


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures of random colours."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(picture_bytes(i))
    return folder


def rows(out: Path, name: str = "scores.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_scored_one_by_one(igpt, tiny_run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = pictures / "1.png"
    result = igpt("score", tiny_run, pictures, file, "--out", out, "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    paths = [str(pictures / f"{i}.png") for i in (0, 1, 2, 1)]
    nats = package.load(tiny_run).nll(paths)
    assert values["count"] == 4
    assert values["nats_per_pixel"] == pytest.approx(nats.mean())
    assert values["bits_per_pixel"] == pytest.approx(nats.mean() / math.log(2))
    assert values["least_likely"] == paths[int(nats.argmax())]
    assert [row["picture"] for row in rows(out)] == paths
    assert [float(row["nats_per_pixel"]) for row in rows(out)] == pytest.approx(list(nats))
    assert [float(row["bits_per_pixel"]) for row in rows(out)] == pytest.approx(
        list(nats / math.log(2))
    )
    assert names(out) == ["extremes.png", "scores.csv", "surprise.png"]
    assert sorted(values["files"]) == [str(out / name) for name in names(out)]
    assert "ood" not in values


def test_where_nothing_can_be_written_is_said_before_the_work(
    igpt, tiny_run: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    out = tmp_path / "file" / "out"
    for words in (["score", tiny_run, pictures], ["probe", tiny_run]):
        result = igpt(*words, "--out", out)
        assert_mistake(result, f"cannot write into {out}")
        assert "pictures" not in result.err.replace(str(pictures), "")  # nothing was done before


def test_scores_in_bfloat16_are_nearly_the_same(igpt, tiny_run: Path, tmp_path: Path) -> None:
    def nats(command: str, precision: str) -> float:
        out = ("--out", tmp_path / precision) if command == "score" else ()
        words = (command, tiny_run, "--limit", 20, "--precision", precision, *out)
        return float(json.loads(igpt(*words, "--json").out)["nats_per_pixel"])

    for command in ("score", "eval"):
        exact, rounded, fastest = (nats(command, p) for p in ("float32", "bfloat16", "auto"))
        assert 0 < abs(rounded - exact) < 0.01
        assert fastest in (exact, rounded)
    result = igpt("score", tiny_run, "--precision", "int8", "--out", tmp_path / "out")
    assert_mistake(result, "choose from")


def test_one_picture_has_no_extremes(igpt, tiny_run: Path, pictures: Path, tmp_path: Path) -> None:
    assert igpt("score", tiny_run, pictures / "1.png", "--out", tmp_path / "out").status == 0
    assert names(tmp_path / "out") == ["scores.csv", "surprise.png"]


def test_the_runs_own_test_split_is_the_default_and_has_extremes(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, shown = tmp_path / "out", list[tuple[np.ndarray, ...]]()

    def sheet(*ends: np.ndarray) -> Image.Image:
        shown.append(ends)
        return extremes_sheet(*ends)

    monkeypatch.setattr("igpt.plots.scores.extremes_sheet", sheet)
    result = igpt("score", tiny_run, "--limit", 25, "--top", 3, "--out", out)
    assert result.status == 0, result.err
    assert names(out) == ["extremes.png", "scores.csv", "surprise.png"]
    assert len(rows(out)) == 25
    assert result.out.count("digits/test[") == 20 + 1  # the listed, and the likeliest
    assert f"… 5 likelier ones in {out / 'scores.csv'}" in result.out
    found = sorted(rows(out), key=lambda row: -float(row["nats_per_pixel"]))
    listed = [line.split()[0] for line in result.out.splitlines()[1:21]]
    assert listed == [row["picture"] for row in found[:20]]
    for row in found:
        left = float(row["bits_per_pixel"]) - float(row["compressed_bits_per_pixel"])
        assert float(row["corrected_bits_per_pixel"]) == pytest.approx(left)
    assert "25 pictures: " in result.out
    for name in ("extremes.png", "surprise.png"):
        assert str(out / name) in result.out
        assert is_sheet(out / name)
    ranked = sorted(float(row["bits_per_pixel"]) for row in rows(out))
    ((_, likely, _, unlikely),) = shown
    assert likely == pytest.approx(ranked[:3], abs=1e-4)
    assert unlikely == pytest.approx(ranked[::-1][:3], abs=1e-4)
    eight = Image.open(out / "surprise.png").height
    assert igpt("score", tiny_run, "--limit", 16, "--maps", 16, "--out", out).status == 0
    assert Image.open(out / "surprise.png").height > 1.5 * eight


def test_the_surprise_of_the_least_likely_is_drawn(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[np.ndarray]()

    def sheet(pictures: np.ndarray, nats: np.ndarray) -> Image.Image:
        drawn.append(nats.mean(axis=(1, 2)))
        return surprise_sheet(pictures, nats)

    monkeypatch.setattr("igpt.plots.scores.surprise_sheet", sheet)
    words = ("score", tiny_run, "--limit", 25, "--maps", 3, "--out", tmp_path)
    assert igpt(*words).status == 0
    nats = sorted(float(row["nats_per_pixel"]) for row in rows(tmp_path))
    assert drawn[0].tolist() == pytest.approx(nats[::-1][:3], rel=1e-5)


def test_figures_of_an_earlier_call_go(igpt, tiny_run: Path, tmp_path: Path) -> None:
    words = ("score", tiny_run, "--out", tmp_path)
    assert igpt(*words, "--limit", 4, "--ood", "digits").status == 0
    assert "ood.png" in names(tmp_path)
    assert igpt(*words, "--limit", 1).status == 0
    assert names(tmp_path) == ["scores.csv", "surprise.png"]


def test_two_sets_are_told_apart_raw_and_corrected(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    black = np.zeros((20, 8, 8), np.uint8)  # as a digit's background, of which it is certain
    np.savez(tmp_path / "black.npz", x_train=black[:3], x_test=black)
    monkeypatch.chdir(tmp_path)
    words = ("score", tiny_run, "--limit", 30, "--ood", "black.npz")
    result = igpt(*words, "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    ood = values["ood"]
    assert (ood["data"], ood["count"]) == ("black.npz", 20)
    assert ood["compressed_bits_per_pixel"] < values["compressed_bits_per_pixel"]
    # Raw likelihood takes what is simplest for what is most familiar; the correction does not.
    assert ood["auroc_raw"] < 0.1
    assert ood["auroc_corrected"] > 0.9
    assert names(tmp_path / "scores") == [  # the default folder
        *("extremes.png", "ood.csv", "ood.png", "scores.csv", "surprise.png"),
    ]
    assert len(rows(tmp_path / "scores", "ood.csv")) == len(ood["pictures"]) == 20
    text = igpt(*words, "--ood-split", "train").out
    assert f"  {ood['auroc_raw']:.3f} ± " in igpt(*words).out
    assert "3 pictures of black.npz" in text
    assert "below 0.5: the model finds the other pictures likelier than these" in text
    assert "corrected for complexity" in text


def test_the_runs_other_split_can_be_the_other_set(igpt, tiny_run: Path, tmp_path: Path) -> None:
    words = ("--limit", 40, "--ood", "digits", "--out", tmp_path / "out", "--json")
    same = json.loads(igpt("score", tiny_run, *words).out)["ood"]
    assert same["auroc_raw"] == same["auroc_corrected"] == pytest.approx(0.5)
    train = json.loads(igpt("score", tiny_run, *words, "--ood-split", "train").out)["ood"]
    assert 0.3 < train["auroc_raw"] < 0.7


def test_one_unreadable_picture_is_skipped_and_named(
    igpt, tiny_run: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "1.png").write_bytes(b"")
    result = igpt("score", tiny_run, pictures, "--out", tmp_path / "out")
    assert result.status == 0
    assert "1.png" in result.err
    assert "1 unreadable picture skipped" in result.out
    assert [Path(row["picture"]).name for row in rows(tmp_path / "out")] == ["0.png", "2.png"]


MISTAKES = [
    (["{tmp}/none.png"], "no picture"),
    (["{tmp}/text.npy"], "is an array: give it by --data"),
    (["{tmp}/empty"], "no pictures"),
    (["{tmp}/text.npy", "--data", "digits"], "not both"),
    (["--data", "{tmp}/nothing"], "no data at"),
    (["--split", "dev"], "train, test"),
    (["--limit", "0"], "--limit: must be at least 1"),
    (["--top", "0"], "--top: must be at least 1"),
    (["--limit", "2", "--ood", "{tmp}/nothing"], "no data at"),
    (["--limit", "2", "--ood", "digits", "--ood-split", "dev"], "train, test"),
    (["--limit", "2", "--ood-split", "train"], "give --ood"),
    (["--limit", "2", "--out", "{tmp}/text.npy/out"], "cannot write"),
]


@pytest.mark.parametrize(("words", "complaint"), MISTAKES)
def test_a_mistake_gives_one_line_status_2_and_leaves_nothing(
    igpt, tiny_run: Path, tmp_path: Path, words: list[str], complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("hello")
    filled = [word.format(tmp=tmp_path) for word in words]
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    result = igpt("score", tiny_run, *filled, *out)
    assert_mistake(result, complaint)
    assert names(tmp_path) == ["empty", "text.npy"]


def test_a_bert_run_is_scored_too(igpt, tmp_path: Path, pictures: Path) -> None:
    config = ModelConfig(2, 2, 16, vocab_size=11, n_positions=64, causal=False)
    palette = Palette(np.linspace(-1, 1, 33, dtype=np.float32).reshape(11, 3))
    save_model(tmp_path / "run", random_model(config), Codec(palette, "hilbert", 8))
    result = igpt("score", tmp_path / "run", pictures, "--out", tmp_path / "out", "--json")
    assert result.status == 0, result.err
    surprise = package.load(tmp_path / "run").surprise(str(pictures / "0.png"))
    first = json.loads(result.out)["pictures"][0]
    assert first["nats_per_pixel"] == pytest.approx(surprise.mean(), rel=1e-5)
