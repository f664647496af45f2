"""Pictures that come as tokens, as OpenAI's `imagenet_teX.npy` and `imagenet_teY.npy` do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import TINY, is_sheet
from igpt.config import DataConfig, UserError
from igpt.data.decode import decode_all
from igpt.data.labels import open_task
from igpt.data.sources import open_source
from igpt.data.splits import evaluation_split, training_splits
from igpt.order import ORDERS, Codec, Encoded
from igpt.palette import Palette
from igpt.pipeline import load

Array = npt.NDArray[Any]


def one_hot(labels: Array) -> Array:
    """As OpenAI's code feeds them: float32 [N, C]."""
    return np.eye(10, dtype=np.float32)[labels]


def write(folder: Path, palette: Palette, labels_as: Callable[[Array], Array] = one_hot) -> Path:
    """The digits as OpenAI's six files; returns what their names start with."""
    source = open_source("digits")
    train, validation = training_splits(source, DataConfig(), seed=0)
    for part, pictures in (("tr", train), ("va", validation), ("te", source.split("test"))):
        images = decode_all(pictures, 8).images
        assert isinstance(images, np.ndarray)
        assert pictures.labels is not None
        np.save(folder / f"digits_{part}X.npy", palette.encode(images).astype(np.int64))
        np.save(folder / f"digits_{part}Y.npy", labels_as(pictures.labels))
    return folder / "digits"


@pytest.fixture(scope="module")
def prefix(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in the colours of the tiny run."""
    palette = Palette.load(tiny_run / "palette.npy")
    return write(tmp_path_factory.mktemp("encoded"), palette)


# --- sources -------------------------------------------------------------------------------------


def test_a_prefix_a_folder_and_a_file_name_the_same_arrays(prefix: Path) -> None:
    for spec in (prefix, prefix.parent):
        source = open_source(str(spec))
        assert set(source.splits) == {"train", "validation", "test"}
        train, validation = training_splits(source, DataConfig(), seed=0)
        assert (len(train), len(validation)) == (1350, 150)
    (only,) = open_source(f"{prefix}_teX.npy").open_split.values()
    test = evaluation_split(open_source(str(prefix)), "test")
    for pictures in (only(), test):
        assert pictures.encoded is not None
        assert np.array_equal(pictures.encoded.tokens, np.load(f"{prefix}_teX.npy"))
        assert pictures.name(3) == f"{prefix}_teX.npy[3]"


@pytest.mark.parametrize(
    "labels_as", [one_hot, lambda labels: one_hot(labels).astype(np.int8), np.uint8, None]
)
def test_labels_are_classes_or_one_hot_rows_or_missing(
    tiny_run: Path, tmp_path: Path, labels_as: Callable[[Array], Array] | None
) -> None:
    prefix = write(tmp_path, Palette.load(tiny_run / "palette.npy"), labels_as or one_hot)
    expected = open_source("digits").split("test").labels
    if labels_as is None:
        Path(f"{prefix}_teY.npy").unlink()
        expected = None
    labels = open_source(str(prefix)).split("test").labels
    assert np.array_equal(labels, expected) if expected is not None else labels is None
    if expected is not None:
        task = open_task(open_source(str(prefix)), DataConfig(), 8, seed=0)
        assert task.train.class_names == tuple("0123456789")
        assert isinstance(task.train.images, Encoded)
        few = task.train.select(np.array([5, 2]))
        assert np.array_equal(few.labels, task.train.labels[[5, 2]])


@pytest.mark.parametrize("name", ["tokens.npy", "tokens.npz"])
def test_whole_numbers_in_rows_are_tokens_under_any_name(tmp_path: Path, name: str) -> None:
    tokens = np.arange(12, dtype=np.uint8).reshape(3, 4)
    if name.endswith("npy"):
        np.save(tmp_path / name, tokens)
    else:
        np.savez(tmp_path / name, x=tokens, y=np.arange(3))
    pictures = open_source(str(tmp_path / name)).split("train")
    chosen = pictures.select(np.array([2, 0]))
    encoded = decode_all(chosen, 2).images
    assert isinstance(encoded, Encoded)
    assert encoded.tokens.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("part", "array", "complaint"),
    [
        ("teX", np.zeros((4, 64), np.float32), "whole numbers"),
        ("teX", np.zeros((4, 8, 8), np.int64), "whole numbers"),
        ("teX", np.full((4, 64), -1), "0 to 65534, got -1"),
        ("teX", np.full((4, 64), 70_000), "0 to 65534, got 70000"),
        ("teX", np.zeros((0, 64), np.int64), "has no pictures"),
        ("teY", np.zeros(3, np.int64), r"labels \[4\]"),
        ("teY", np.full((4, 2), 0.5), "integer labels"),
        ("teY", np.array(["a"] * 4), "integer labels"),
    ],
)
def test_arrays_that_are_not_tokens_or_labels_are_refused(
    tmp_path: Path, part: str, array: Array, complaint: str
) -> None:
    np.save(tmp_path / "a_teX.npy", np.zeros((4, 64), np.int64))
    np.save(tmp_path / f"a_{part}.npy", array)
    with pytest.raises(UserError, match=complaint):
        open_source(str(tmp_path)).split("test")


def test_what_is_not_a_whole_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a_teX.npy"
    np.save(path, np.zeros((4, 64), np.int64))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a whole"):
        open_source(str(path)).split("test")
    with path.open("wb") as file:
        np.savez(file, tokens=np.zeros(3))
    with pytest.raises(UserError, match="an archive of"):
        open_source(str(path)).split("test")
    np.save(tmp_path / "b_teX.npy", np.zeros((4, 64), np.int64))
    with pytest.raises(UserError, match=f"several data sets, name one: {tmp_path / 'a'}"):
        open_source(str(tmp_path))


def test_tokens_have_no_pixels(prefix: Path) -> None:
    with pytest.raises(UserError, match="no pixels"):
        open_source(str(prefix)).split("test").image(0)


# --- the border ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_tokens_are_put_into_the_models_order(order: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    codec = Codec(Palette.fit(images, 7), order, 5)
    encoded = Encoded(codec.palette.encode(images))
    assert np.array_equal(codec.encode(encoded), codec.encode(images))


def test_another_size_or_palette_is_refused() -> None:
    codec = Codec(Palette(np.zeros((3, 3))), "raster", 2)
    with pytest.raises(UserError, match="have 9 tokens each, 2x2 pixels are 4"):
        codec.encode(Encoded(np.zeros((1, 9), int)))
    with pytest.raises(UserError, match="token 3, the palette has only 3 colours"):
        codec.encode(Encoded(np.full((1, 4), 3)))


def test_a_pipeline_takes_tokens_as_it_takes_pictures(tiny_run: Path, prefix: Path) -> None:
    pipeline = load(tiny_run)
    images = decode_all(open_source("digits").split("test"), 8).images[:5]
    encoded = Encoded(np.load(f"{prefix}_teX.npy")[:5])
    for compute in (pipeline.nll, pipeline.features, pipeline.surprise, pipeline.quantize):
        assert np.array_equal(compute(encoded), compute(images))


# --- commands ------------------------------------------------------------------------------------


def test_the_evaluation_of_tokens_is_that_of_the_pictures(
    igpt, tiny_run: Path, prefix: Path
) -> None:
    """What `igpt eval` does with OpenAI's published arrays, on a stand-in for their model."""
    of_pictures = json.loads(igpt("eval", tiny_run, "--json").out)
    for data in (prefix, prefix.parent, f"{prefix}_teX.npy"):
        result = igpt("eval", tiny_run, "--data", data, "--json")
        assert result.status == 0, result.err
        assert json.loads(result.out) == of_pictures
        assert "warning" not in result.err
    part = json.loads(
        igpt("eval", tiny_run, "--data", prefix, "--split", "train", "--limit", 9, "--json").out
    )
    assert part["count"] == 9


def test_probe_and_predict_take_tokens(igpt, tiny_run: Path, prefix: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    results = []
    for words in ((), ("--data", prefix)):
        result = igpt("probe", run, *words, "--layer", 1, 2, "--json")
        assert result.status == 0, result.err
        results.append(json.loads(result.out))
        assert results[-1].pop("data") == str(words[1] if words else "digits")
        predicted = json.loads(igpt("predict", run, *words, "--json").out)
        results[-1]["predict"] = predicted["accuracy"], predicted["confusion"]
    assert results[0] == results[1]
    refused = igpt("probe", run, "--data", prefix, "--layer", 1, "--baselines")
    assert refused.status == 2
    assert "needs pictures" in refused.err


def test_the_runs_own_data_are_known_by_another_spelling_of_their_path(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=images, y=np.arange(40) % 2)
    monkeypatch.chdir(tmp_path)
    words = ("--data", "d.npz", "--steps", 2, "data.validation_fraction=0.3", "--out", "run")
    assert igpt("pretrain", "digits", *words).status == 0
    result = igpt("eval", "run", "--data", tmp_path / "d.npz")
    assert "the 12 pictures that training held out" in result.err


def test_complete_score_and_features_take_tokens(
    igpt, tiny_run: Path, prefix: Path, tmp_path: Path
) -> None:
    for name, words in (("pictures", ()), ("tokens", ("--data", prefix))):
        out = tmp_path / name
        few = (tiny_run, *words, "--limit", 3)
        for result in (
            igpt("complete", *few, "-n", 2, "--out", out / "sheet.png"),
            igpt("score", *few, "--out", out),
            igpt("features", *few, "--layer", 1, "--out", out / "features.npz"),
        ):
            assert result.status == 0, result.err
        assert is_sheet(out / "sheet.png")
    ours, theirs = tmp_path / "pictures", tmp_path / "tokens"
    for name in ("sheet.png", "surprise.png"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    with np.load(ours / "features.npz") as a, np.load(theirs / "features.npz") as b:
        assert np.array_equal(a["features"], b["features"])
        assert np.array_equal(a["labels"], b["labels"])


@pytest.mark.usefixtures("on_processor")
def test_pretraining_on_tokens_is_pretraining_on_their_pictures(
    igpt, tiny_run: Path, prefix: Path, tmp_path: Path
) -> None:
    palette = ("--palette", tiny_run / "palette.npy")
    losses = []
    for name, words in (("pictures", ()), ("tokens", ("--data", prefix))):
        run = tmp_path / name
        result = igpt("pretrain", "digits", *TINY, *words, *palette, "--out", run, "--json")
        assert result.status == 0, result.err
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert len(losses[0]) > 3
    assert losses[0] == losses[1]


MISTAKES = [
    (["eval", "{run}", "--data", "{tmp}/long.npy"], "have 81 tokens each, 8x8 pixels are 64"),
    (["eval", "{run}", "--data", "{tmp}/rich.npy"], "have token 500, the palette has only"),
    (["eval", "{run}", "--data", "{tmp}/float.npy"], "whole numbers"),
    (["pretrain", "digits", "--data", "{prefix}", "--out", "{tmp}/r"], "--palette"),
    (["pretrain", "digits", "--data", "{prefix}", "--out", "{tmp}/r", "--palette",
      "{run}/palette.npy", "--augmentation", "imagenet"], "tokens already"),
    (["palette", "--data", "{prefix}", "--size", "8", "--out", "{tmp}/p.npy"], "needs pictures"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "complaint"), MISTAKES)
def test_a_mistake_gives_one_line_status_2_and_leaves_nothing(
    igpt, tiny_run: Path, prefix: Path, tmp_path: Path, argv: list[str], complaint: str
) -> None:
    np.save(tmp_path / "long.npy", np.zeros((2, 81), np.int64))
    np.save(tmp_path / "rich.npy", np.full((2, 64), 500))
    np.save(tmp_path / "float.npy", np.zeros((2, 64)))
    before = sorted(tmp_path.iterdir())
    result = igpt(*[word.format(tmp=tmp_path, run=tiny_run, prefix=prefix) for word in argv])
    (line,) = [line for line in result.err.splitlines() if "error:" in line]
    assert result.status == 2
    assert complaint in line
    assert sorted(tmp_path.iterdir()) == before
