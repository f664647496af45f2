"""Faults done for real: killed processes, signals, a full disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import several
from conftest import TINY, curve, newest, no_gpu, silent, tiny_recipe
from igpt.checkpoint import RunDirectory
from igpt.pretrain import pretrain

pytestmark = pytest.mark.usefixtures("on_processor")

STEPS = 60
COMMAND = ["pretrain", "digits", *TINY, f"train.steps={STEPS}"]


def command(out: Path, *more: str) -> list[str]:
    return [*COMMAND, "--out", str(out), *more]


def started(out: Path, *more: str, **environment: str) -> several.Several:
    """One process of its own."""
    return several.igpt(1, *command(out, *more), environment=environment)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, float]]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with no_gpu():
        pretrain(tiny_recipe(f"train.steps={STEPS}"), out, resume=False, say=silent)
    return curve(out)


def start_and(send: signal.Signals, out: Path, after_step: int, delay: float = 0) -> int:
    """Start the run, signal it so long after it logged a step; its exit status."""
    running = started(out, "--resume")
    (process,) = running.processes
    several.reaches(out, after_step, 120, lambda: process.exitcode is not None)
    time.sleep(delay)
    running.send(send, [0])
    (status,) = running.wait(60)
    return status


def test_killed_at_random_moments_a_run_ends_with_the_undisturbed_curve(
    igpt, tmp_path: Path, undisturbed: list[tuple[int, str, float]]
) -> None:
    out, rng = tmp_path / "run", random.Random(os.getpid())
    moments = sorted(rng.sample(range(1, STEPS - 10), 2))
    for moment in moments:
        status = start_and(signal.SIGKILL, out, moment, rng.uniform(0, 0.03))
        assert status == -signal.SIGKILL, moments
    assert igpt("pretrain", "--out", out, "--resume").status == 0
    assert curve(out) == undisturbed, moments


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_signal_saves_and_the_run_goes_on_from_there(
    igpt, tmp_path: Path, undisturbed: list[tuple[int, str, float]], name: str, status: int
) -> None:
    out = tmp_path / "run"
    assert start_and(signal.Signals[name], out, 18) == status
    state, _ = newest(out)
    assert 18 <= state.step < STEPS
    assert igpt("pretrain", "--out", out, "--resume").status == 0
    assert curve(out) == undisturbed


def test_a_run_outlives_the_reader_of_its_lines(tmp_path: Path) -> None:
    """Ctrl-C under `2>&1 | tee log` ends `tee` as well, and the run has yet to save."""
    out = tmp_path / "run"
    words = [sys.executable, "-m", "igpt", *command(out)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        several.reaches(out, 18, 120, lambda: process.poll() is not None)
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(timeout=60) == 0
    assert newest(out)[0].step == STEPS


def test_a_full_disk_stops_the_run_in_one_line_with_the_last_checkpoint_intact(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        done = started(disk / "run", "model.n_embd=32", "train.eval_every=1000")
        assert done.wait() == [2]
        last = done.err.strip().splitlines()[-1]
        assert "cannot write" in last
        assert "No space left" in last
        assert "Traceback" not in done.err
        said: list[str] = []
        assert RunDirectory(disk / "run").latest_checkpoint(said.append) is not None
        assert said == []  # nothing was gone back to
        newest(disk / "run")  # its tensors can be read
        left = [p.name for p in (disk / "run" / "checkpoints").iterdir() if "tmp" in p.name]
        assert not left
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_without_a_compiler_a_run_that_asks_for_it_trains_all_the_same(tmp_path: Path) -> None:
    caches = {name: str(tmp_path / "c") for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")}
    words = ("train.steps=2", "train.compile=true", "model.n_layer=1")
    done = started(tmp_path / "run", *words, **caches, PATH=str(tmp_path))  # which has no programs
    assert done.wait() == [0], done.err
    assert "train.compile is left out" in done.err
    assert curve(tmp_path / "run")[-1][0] == 2
