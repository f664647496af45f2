"""features through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from conftest import (
    assert_mistake,
    picture_bytes,
    silent,
    tiny_recipe,
    write_classes,
    write_pictures,
)
from igpt.checkpoint import RunDirectory
from igpt.data.sources import open_source
from igpt.data.splits import training_splits
from igpt.pipeline import load
from igpt.pretrain import pretrain
from igpt.probe.linear import FeatureTransform


def test_features_of_the_test_split_with_their_labels(igpt, tiny_run: Path, tmp_path: Path) -> None:
    out, test = tmp_path / "f.npz", open_source("digits").split("test")
    words = ("--precision", "float32", "--out", out)
    values = json.loads(igpt("features", tiny_run, *words, "--json").out)
    assert values == {"out": str(out), "shape": [297, 3, 16], "count": 297, "skipped": 0}
    with np.load(out, allow_pickle=False) as members:
        assert np.array_equal(members["labels"], test.labels)
        assert members["names"][5] == "digits/test[5]"
        expected = load(tiny_run).features([test.image(i) for i in range(297)])
        assert np.array_equal(members["features"], expected)


def test_one_layer_of_a_folder_as_a_table(igpt, tiny_run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "f.parquet"
    for i, kind in enumerate(("cat", "dog", "dog")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{i}.png").write_bytes(picture_bytes(i))
    (folder / "cat" / "broken.png").write_bytes(b"no picture")
    words = ("--data", folder, "--split", "train", "--layer", "1:2", "--pool", "grid:2")
    result = igpt("features", tiny_run, *words, "--out", out)
    assert result.status == 0, result.err
    assert "features of 3 pictures, 3 x 128 float32; 1 unreadable picture skipped" in result.out
    assert "broken.png" in result.err
    table = pq.read_table(out)
    assert table.column_names == ["features", "label", "name"]
    assert table["label"].to_pylist() == [0, 1, 1]
    assert [Path(name).name for name in table["name"].to_pylist()] == ["0.png", "1.png", "2.png"]


def test_all_pictures_of_a_folder_whatever_its_splits(igpt, tiny_run: Path, tmp_path: Path) -> None:
    names = "train/a.png", "train/b.png", "test/c.png"
    write_pictures(tmp_path, *names)
    words = ("features", tiny_run, tmp_path / "train", tmp_path / "test" / "c.png")
    result = igpt(*words, "--layer", 1, "--precision", "float32", "--out", tmp_path / "f.npz")
    assert result.status == 0, result.err
    with np.load(tmp_path / "f.npz", allow_pickle=False) as members:
        expected = load(tiny_run).features([tmp_path / name for name in names], layer=1)
        assert np.array_equal(members["features"], expected)
        assert "labels" not in members
    evaluated = igpt("eval", tiny_run, tmp_path / "train", "--json")
    assert json.loads(evaluated.out)["count"] == 2


def test_every_split_has_the_same_principal_components(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    words = ("--layer", "2", "--pool", "grid:4", "--pca", "8", "--precision", "float32")
    parts, plain = {}, {}
    for split in ("train", "test"):
        out = tmp_path / f"{split}.npz"
        result = igpt("features", tiny_run, "--split", split, *words, "--out", out)
        assert result.status == 0, result.err
        parts[split] = np.load(out)["features"]
        images = open_source("digits").split(split)
        pictures = [images.image(i) for i in range(len(images))]
        plain[split] = load(tiny_run).features(pictures, layer=2, pool="grid:4")
    assert parts["train"].shape == (1500, 8)
    assert parts["test"].shape == (297, 8)
    # Those of the pictures that the run was trained on: the others were held out.
    recipe = RunDirectory(tiny_run).recipe()
    train, _ = training_splits(open_source("digits"), recipe.data, recipe.train.seed)
    known = load(tiny_run).features(
        [train.image(i) for i in range(len(train))], layer=2, pool="grid:4"
    )
    transform = FeatureTransform.fit(known, 8)
    for split in ("train", "test"):
        assert parts[split] == pytest.approx(transform(plain[split]), abs=1e-3)


def test_components_of_files_need_pictures_that_are_there(igpt, tmp_path: Path) -> None:
    pictures, run = write_classes(tmp_path / "pictures", 20, 0), tmp_path / "run"
    pretrain(tiny_recipe(f"data.source={pictures}"), run, resume=False, say=silent)
    moved = pictures.rename(tmp_path / "moved")
    out = tmp_path / "f.npz"
    words = ("features", run, "--pca", 3, "--layer", 1, "--out", out)
    assert_mistake(igpt(*words, moved), "names none that are there: give a folder as --data")
    assert not out.exists()
    assert igpt(*words, "--data", moved).status == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["{run}", "--layer", "3", "--out", "{tmp}/f.npz"], "a layer of 0 to 2"),
        (["{run}", "--pool", "max", "--out", "{tmp}/f.npz"], "pool 'max'"),
        (["{run}", "--out", "{tmp}/f.csv"], "expected .npz or .parquet"),
        (["{run}", "--data", "{tmp}/none", "--out", "{tmp}/f.npz"], "no data at"),
        (["{run}", "a.png", "--data", "digits", "--out", "{tmp}/f.npz"], "not both"),
        (["{run}", "a.png", "--split", "test", "--out", "{tmp}/f.npz"], "not with picture files"),
        (["{run}", "--limit", "0", "--out", "{tmp}/f.npz"], "--limit: must be at least 1"),
        (["{run}", "--pca", "0", "--out", "{tmp}/f.npz"], "--pca: must be at least 1"),
        (["{run}"], "--out"),
        (["{tmp}/none", "--out", "{tmp}/f.npz"], "no run at"),
    ],
)
def test_a_mistake_gives_one_line_status_2_and_leaves_nothing(
    igpt, tiny_run: Path, tmp_path: Path, words: list[str], complaint: str
) -> None:
    result = igpt("features", *[word.format(run=tiny_run, tmp=tmp_path) for word in words])
    assert_mistake(result, complaint)
    assert not list(tmp_path.iterdir())
