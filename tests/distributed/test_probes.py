"""Features and probes on two processes are those of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

import several
from conftest import write_classes
from igpt.cli import main
from igpt.config import ParallelConfig
from igpt.interop.files import read_metadata
from igpt.parallel.processes import in_turn, processes, rank
from igpt.probe import attention

# What is compared with several processes is where they are: on the processor.
pytestmark = pytest.mark.usefixtures("on_processor")


def uneven() -> None:
    with processes(ParallelConfig()):
        own = torch.full((rank(), 3), float(rank()))  # the first process has none
        parts = list(in_turn(own))
        assert [part.tolist() for part in parts] == [[[1.0] * 3], [[2.0] * 3] * 2]


def test_parts_of_any_length_come_in_the_order_of_the_processes() -> None:
    several.call(3, uneven)


def quick(*argv: str) -> None:
    """The command line, with fewer steps of attentive probes."""
    attention.STEPS = QUICK_STEPS
    main(list(argv))


QUICK_STEPS = 100
SPLIT = ["--shard", 2]  # the model, between the processes
BASELINES = ("--baselines", "--cnn-minutes", 0.001)


def test_a_file_of_features_is_the_same(igpt, tiny_run: Path, tmp_path: Path) -> None:
    words = ["features", tiny_run, "--limit", 83, "--pool", "grid:2", "--out"]
    for split, suffix in (([], "npz"), (SPLIT, "parquet")):
        done = several.igpt(2, *words, tmp_path / f"two.{suffix}", *split)
        assert done.wait() == [0, 0], done.err
        assert igpt(*words, tmp_path / f"one.{suffix}").status == 0
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert one["features"].shape == (83, 3, 4 * 16)
    np.testing.assert_allclose(two["features"], one["features"], atol=1e-5)
    assert one["names"].tolist() == two["names"].tolist()
    assert one["labels"].tolist() == two["labels"].tolist()
    first, second = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    for column in first.column_names:
        ours, theirs = first[column].to_pylist(), second[column].to_pylist()
        if column in ("label", "name"):
            assert theirs == ours
        else:
            np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        ["--labels-per-class", 2, 10, "--seeds", 1, *BASELINES],
        ["--labels-per-class", 4, "--seeds", 1, "--layer", 1, "--precision", "float32"],
        ["--head", "attention", "--layer", 1, "--labels-per-class", 10, "--seeds", 1],
        ["--solver", "sgd", "--epochs", 1, "--batch-size", 32],
    ],
)
def test_a_probe_is_the_same(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[object]
) -> None:
    monkeypatch.setattr(attention, "STEPS", QUICK_STEPS)

    def probe(name: str) -> list[object]:
        return ["probe", tiny_run, "--json", "--out", tmp_path / name, *words]

    alone = json.loads(igpt(*probe("one")).out)
    for name, split in (("two", []), ("split", SPLIT)):
        done = several.Several(2, quick, tuple(map(str, [*probe(name), *split])))
        assert done.wait() == [0, 0], done.err
        shared = json.loads(done.out)
        for one, two in zip(alone["summaries"], shared["summaries"], strict=True):
            if "CNN" not in one["method"]:  # which is trained by the clock
                assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.004)  # 1 of 297
        assert shared["layer"] == alone["layer"]
        assert json.loads((tmp_path / name / "results.json").read_text()) == shared
        files = [tmp_path / folder / "probe.safetensors" for folder in ("one", name)]
        headers = [json.loads(read_metadata(file)["probe"]) for file in files]
        assert headers[0]["made_for"]["weights"] == headers[1]["made_for"]["weights"]


def test_a_probe_on_crops_is_the_same_and_names_what_any_process_cannot_read(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    data = write_classes(tmp_path / "pictures", 40, 12)
    for path in ("train/dark/6.png", "train/light/9.png"):
        (data / path).write_bytes(b"no picture")
    words = ["--solver", "sgd", "--epochs", 3, "--batch-size", 8, "--lr", 0.3, "--layer", 1]

    def probe(name: str) -> list[object]:
        crops = ["--data", data, "--augmentation", "imagenet", "--out", tmp_path / name]
        return ["probe", tiny_run, *words, *crops]

    done = several.igpt(2, *probe("two"))
    assert done.wait() == [0, 0], done.err
    assert igpt(*probe("one")).status == 0
    assert all(name in done.err for name in ("6.png", "9.png"))
    one, two = (load_file(tmp_path / name / "probe.safetensors") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4)


def test_a_palette_is_fitted_by_the_first_process(igpt, tmp_path: Path) -> None:
    words = ["palette", "--data", "digits", "--size", 8, "--colors", 9, "--json", "--out"]
    done = several.igpt(2, *words, tmp_path / "two.npy")
    assert done.wait() == [0, 0], done.err
    assert json.loads(done.out)["colors"] == 9
    assert igpt(*words, tmp_path / "one.npy").status == 0
    assert (tmp_path / "two.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()


def test_a_mistake_with_a_palette_is_told_at_once(tmp_path: Path) -> None:
    done = several.igpt(2, "palette", "--data", "nothing", "--size", 8, "--out", tmp_path / "p.npy")
    assert 2 in done.wait(seconds=60)
    assert done.err.count("error:") == 1
    assert "no data at 'nothing'" in done.err


def test_a_batch_that_cannot_be_shared_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    words = ["--solver", "sgd", "--batch-size", 33, "--out", tmp_path / "out"]
    done = several.igpt(2, "probe", tiny_run, *words)
    assert done.wait() == [2, 2]
    assert done.err.count("error:") == 1
    assert "--batch-size (33) must be a multiple of the processes (2)" in done.err
