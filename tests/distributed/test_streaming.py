"""A stream on several processes that are killed: is anything lost?"""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

import several
from conftest import TINY, curve
from numbered_shards import write_shards

STREAM = ["--streaming", "data.validation_pictures=4", "data.shuffle_buffer=5", "--size", "4"]
WORDS = [*TINY, *STREAM, "train.steps=25", "train.checkpoint_every=5", "train.eval_every=20"]


def kill_after(running: several.Several, run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.is_file() and f'"step": {step},' in path.read_text():
            running.send(signal.SIGKILL, list(range(running.n)))
            return
        time.sleep(0.002)
    raise AssertionError(running.err)


@pytest.mark.parametrize(
    ("kind", "shards"),
    [("tar", (8, 8, 8, 6)), ("parquet", (10, 10, 10))],
    ids=["a process reads whole shards", "a process reads every second picture"],
)
def test_killed_processes_go_on_with_the_undisturbed_curve(
    tmp_path: Path, kind: str, shards: tuple[int, ...]
) -> None:
    write_shards(tmp_path / "set", kind, shards)
    words = ["pretrain", "digits", *WORDS, "--data", tmp_path / "set"]
    undisturbed = several.igpt(2, *words, "--out", tmp_path / "calm")
    assert undisturbed.wait() == [0, 0], undisturbed.err
    run = tmp_path / "killed"
    killed = several.igpt(2, *words, "--out", run)
    kill_after(killed, run, 13)
    assert killed.wait() == [-signal.SIGKILL] * 2
    for folder in (run / "checkpoints").glob("step-*"):
        assert len(list(folder.glob("loader-*.json"))) == 2
    shutil.copytree(run, tmp_path / "alone")
    resumed = several.igpt(2, "pretrain", "--out", run, "--resume")
    assert resumed.wait() == [0, 0], resumed.err
    assert curve(run) == curve(tmp_path / "calm")
    alone = several.igpt(1, "pretrain", "--out", tmp_path / "alone", "--resume")
    assert alone.wait() == [0], alone.err
    assert "read by 2 processes and is read by 1 now: its epoch" in alone.err


def test_processes_that_divide_a_picture_read_the_same_stream(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", "tar", (8, 8))
    words = ["pretrain", "digits", *WORDS, "train.steps=10", "--data", tmp_path / "set", "--out"]
    alone = several.igpt(1, *words, tmp_path / "alone")
    divided = several.igpt(2, *words, tmp_path / "divided", "parallel.tensor=2")
    assert alone.wait() + divided.wait() == [0, 0, 0], alone.err + divided.err
    expected, found = curve(tmp_path / "alone"), curve(tmp_path / "divided")
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], abs=2e-6)
    for folder in (tmp_path / "divided/checkpoints").glob("step-*"):
        assert len(list(folder.glob("loader-*.json"))) == 1


def test_what_one_process_cannot_read_stops_all_in_one_line(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", "tar", (8, 8))
    broken = tmp_path / "set" / "train-001.tar"
    broken.write_bytes(broken.read_bytes()[:5000])
    running = several.igpt(
        2, "pretrain", "digits", *WORDS, "--data", tmp_path / "set", "--out", tmp_path / "run"
    )
    assert running.wait() == [2, 2]
    (line,) = [line for line in running.err.splitlines() if "error:" in line]
    assert "broke off after 0011.png" in line
