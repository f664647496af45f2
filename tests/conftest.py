"""Pictures and a small trained run that many tests share."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

# Tests run side by side, so with one thread each, also in the processes that they start: threads
# that share a core wait for each other. Libraries read this when they are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from igpt.checkpoint import Progress, RunDirectory
from igpt.cli import main
from igpt.config import Recipe
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.pipeline import load
from igpt.pretrain import Pretrained, pretrain
from igpt.recipes import load_recipe

# Small enough for seconds, and with every moving part: float32, so that it repeats to the bit.
TINY = [
    "train.steps=12",
    "train.batch_size=8",
    "train.log_every=1",
    "train.eval_every=4",
    "train.checkpoint_every=4",
    "train.warmup_steps=4",
    "train.precision=float32",
    "model.n_layer=2",
    "model.n_embd=16",
]


def tiny_recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", [*TINY, *overrides])


def silent(_line: str) -> None:
    """A `say` that says nothing."""


real_fsync = os.fsync


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """No test cuts the power, and to wait for the disk takes longer than small steps do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", real_fsync)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The results of what is recorded, which as with CUDA graphs stay in one place."""
    results: list[Tensor] = []

    def record(step: Callable[[], Tensor], _device: torch.device) -> Callable[[], Tensor]:
        place = step().clone()  # once more than it is asked for
        results.append(place)
        return lambda: place.copy_(step())

    for module in ("device", "decoders"):
        monkeypatch.setattr(f"igpt.{module}.record_step", record)
    return results


@contextmanager
def no_gpu() -> Iterator[None]:
    """As on a machine without a GPU, here and in the processes that are started meanwhile."""
    torch.cuda.is_available()  # asked first: it looks at the variable once and for all
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture
def on_processor() -> Iterator[None]:
    """For what a GPU does not repeat to the bit, or is not what is measured."""
    with no_gpu():
        yield


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """For kernels that divide their work among threads."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the digits; tests must not write into it."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    pretrain(tiny_recipe(), path, resume=False, say=silent)
    return path


def signalled_pretrain(name: str) -> Callable[..., Pretrained]:
    """`pretrain`, as if the signal of that name had come at its end."""

    def signalled(*args: object, **words: object) -> Pretrained:
        done = pretrain(*args, **words)  # type: ignore[arg-type]
        return replace(done, outcome=replace(done.outcome, signal=signal.Signals[name]))

    return signalled


def newest(run: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Progress and tensors of a run's newest checkpoint, which one process wrote."""
    checkpoint = RunDirectory(run).latest_checkpoint()
    assert checkpoint is not None
    (path,) = checkpoint.folder.glob("*.safetensors")
    return checkpoint.progress, load_file(path)


def picture_bytes(seed: int, size: tuple[int, int] = (9, 7), image_format: str = "PNG") -> bytes:
    """An encoded picture of random colours, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def write_pictures(folder: Path, *names: str) -> None:
    """Pictures of random colours, each under its name."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(i))


def load_model(folder: Path) -> tuple[ImageGPT, Codec]:
    """The model, on the processor, and the codec of a run, or of a folder of transformers."""
    pipeline = load(folder)
    return pipeline.model.cpu(), pipeline.codec


def write_classes(folder: Path, n_train: int, n_test: int) -> Path:
    """Pictures of two classes, dark and light, in folders as ImageNet's lie."""
    for split, count in (("train", n_train), ("test", n_test)):
        for i in range(count):
            path = folder / split / ("dark", "light")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 128, (9, 12, 3)) + 127 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def log_of(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, each a whole one."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rows(run: Path, key: str) -> dict[int, float]:
    """A number of the run's log, by step."""
    return {row["step"]: row[key] for row in log_of(run) if key in row}


def curve(run: Path) -> list[tuple[int, str, float]]:
    """Training and validation losses in the order in which they were written."""
    kinds = ("loss", "val_loss")
    return [(row["step"], kind, row[kind]) for row in log_of(run) for kind in kinds if kind in row]


class Result:
    """Exit status and output of one call of the command line."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


def assert_mistake(result: Result, complaint: str) -> None:
    """One line on stderr that says what was wrong, exit status 2, nothing else."""
    assert result.status == 2, result.err
    (line,) = [line for line in result.err.splitlines() if "error:" in line]
    assert complaint in line
    assert "Traceback" not in result.err
    assert result.out == ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that tests for another hands over what it found."""
    from parity.differences import found

    if (handed := getattr(session.config, "workeroutput", None)) is not None:
        handed["differences"] = found


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    """The process that is handed to; one that crashed hands over nothing."""
    from parity.differences import remember

    handed = getattr(node, "workeroutput", {})
    for what, (difference, times) in handed.get("differences", {}).items():
        remember(what, difference, times)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What docs/interop.md states."""
    from parity.differences import summary

    if lines := summary():
        terminalreporter.section("largest differences from other programs")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def igpt(capfd: pytest.CaptureFixture[str]):
    def call(*argv: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        captured = capfd.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return call


def is_sheet(path: Path) -> bool:
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image))) > 3
