"""The probe by SGD: as good as L-BFGS, the same on several processes, and used like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import assert_mistake


def probed(igpt, run: Path, out: Path, *words: object) -> dict[str, object]:
    result = igpt("probe", run, "--pool", "grid:2", "--out", out, "--json", *words)
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_sgd_agrees_with_lbfgs_and_predict_takes_its_probe(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    exact = probed(igpt, tiny_run, tmp_path / "lbfgs")
    sgd = ["--solver", "sgd", "--augmentation", "none"]
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


def test_augmented_features_are_drawn_anew_for_every_batch(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    words = ["--solver", "sgd", "--layer", 1, "--epochs", 3, "--lr", 0.3]
    plain = probed(igpt, tiny_run, tmp_path / "none", *words, "--augmentation", "none")
    moved = probed(igpt, tiny_run, tmp_path / "cifar", *words, "--augmentation", "cifar")
    assert moved["summaries"] != plain["summaries"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--labels-per-class", 4], "--solver sgd takes all labels"),
        (["--baselines"], "--solver sgd takes all labels"),
        (["--head", "attention"], "--solver sgd takes all labels"),
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
