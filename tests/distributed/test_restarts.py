"""torchrun for real: a killed worker, a node that is taken away."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import several
from conftest import TINY, curve, no_gpu, silent, tiny_recipe
from igpt.checkpoint import RunDirectory
from igpt.pretrain import pretrain

# There need not be as many GPUs as processes.
pytestmark = pytest.mark.usefixtures("on_processor")

STEPS = 50
WORDS = [f"train.steps={STEPS}", "train.eval_every=20", "train.checkpoint_every=5"]


def torchrun(
    out: Path, *more: str, machines: Sequence[str] = ("--standalone", "--nproc-per-node", "2")
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *machines]
    command += ["--max-restarts", "3", "-m", "igpt", "pretrain", "digits"]
    return subprocess.Popen(
        [*command, *TINY, *WORDS, *more, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(process: subprocess.Popen[str]) -> list[int]:
    """In the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(map(int, children))


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    if not several.reaches(run, step, 240, lambda: process.poll() is not None):
        said = process.communicate(timeout=60)
        raise AssertionError(f"{run} did not come to step {step}: {said}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, float]]:
    """The undisturbed curve of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    with no_gpu():
        pretrain(tiny_recipe(*WORDS), out, resume=False, say=silent)
    return curve(out)


def test_a_run_whose_workers_are_killed_goes_on_by_itself_to_the_undisturbed_curve(
    tmp_path: Path, alone: list[tuple[int, str, float]]
) -> None:
    rng = random.Random(os.getpid())
    run = tmp_path / "run"
    process = torchrun(run)
    moment = rng.randrange(2, STEPS - 10)
    wait_for_step(process, run, moment)
    time.sleep(rng.uniform(0, 0.03))
    os.kill(rng.choice(workers(process)), signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert f"{run}: {STEPS} steps" in out
    found = curve(run)
    assert [row[:2] for row in found] == [row[:2] for row in alone], moment
    assert [row[2] for row in found] == pytest.approx([row[2] for row in alone], abs=1e-5)
    # Before the first checkpoint is whole, the run begins again.
    assert err.count("resuming at step") == 1 or moment <= 10


def test_two_machines_train_one_model_and_go_on_when_one_loses_its_worker(
    tmp_path: Path, alone: list[tuple[int, str, float]]
) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "1"]
    machines = ["--nnodes", "2", "--nproc-per-node", "1", *meeting]
    run = tmp_path / "run"
    agents = [torchrun(run, "parallel.shard=2", machines=machines) for _ in range(2)]
    wait_for_step(agents[0], run, 20)
    os.kill(workers(agents[1])[0], signal.SIGKILL)
    said = [agent.communicate(timeout=240) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert sum(f"{run}: {STEPS} steps" in out for out, _ in said) == 1
    assert any("resuming at step" in err for _, err in said)
    found_curve = curve(run)
    assert [row[:2] for row in found_curve] == [row[:2] for row in alone]
    values = [row[2] for row in found_curve]
    assert values == pytest.approx([row[2] for row in alone], abs=1e-5)


def test_a_node_that_is_taken_away_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun(run)
    wait_for_step(process, run, 7)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on, and waits
    out, _ = process.communicate(timeout=60)
    checkpoint = RunDirectory(run).latest_checkpoint()
    assert checkpoint is not None
    step = checkpoint.progress.step
    assert step >= 7
    assert f"stopped at step {step}; go on with: " in out
