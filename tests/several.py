"""Processes for tests, as torchrun starts several: forked from one that has imported torch.

A new Python, and torchrun itself, take seconds to start; torchrun's environment variables and its
store do not.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

_context = multiprocessing.get_context("forkserver")
# Installed modules: of those that only pytest finds, it would import none.
_context.set_forkserver_preload(
    [
        *("igpt.cli.pretrain", "igpt.finetune", "igpt.plots", "igpt.probing", "datasets"),
        *("sklearn.cluster", "sklearn.datasets", "matplotlib.figure", "omegaconf", "pytest"),
        *("matplotlib.backends.backend_agg", "torch._dynamo", "torch.utils.tensorboard"),
        *("torch.distributed.checkpoint.hf_storage", "torch.distributed.fsdp"),
        "torch.distributed.checkpoint.state_dict_saver",
    ]
)


def _work(environment: dict[str, str], log: Path, act: Callable[..., None], args: Any) -> None:
    os.environ.update(environment)
    os.fsync = lambda _: None  # as in conftest.py
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    act(*args)


def _command(*argv: str) -> None:
    from igpt.cli import main

    main(list(argv))


def _end(processes: list[BaseProcess], logs: Path) -> None:
    """What a test leaves: a stopped process would keep Python from ending."""
    for process in processes:
        process.kill()
        process.join()
    shutil.rmtree(logs, ignore_errors=True)


@dataclass
class Several:
    """`n` processes that do the same."""

    n: int
    act: Callable[..., None]
    args: tuple[Any, ...]
    restarts: int = 0  # how often torchrun started them before
    environment: Mapping[str, str] = field(default_factory=dict)  # more of it
    processes: list[BaseProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._logs = Path(tempfile.mkdtemp(prefix="several-"))
        weakref.finalize(self, _end, self.processes, self._logs)
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "CUDA_VISIBLE_DEVICES": "",  # there need not be as many GPUs as processes
            "WORLD_SIZE": str(self.n),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(self.restarts),
            **self.environment,
        }
        for rank in range(self.n):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = _context.Process(
                target=_work, args=(environment, self._logs / str(rank), self.act, self.args)
            )
            process.start()
            self.processes.append(process)

    def send(self, number: signal.Signals, ranks: list[int]) -> None:
        for rank in ranks:
            pid = self.processes[rank].pid
            assert pid is not None
            os.kill(pid, number)

    def wait(self, seconds: float = 300) -> list[int]:
        """Exit statuses, in the order of ranks; those that do not end are killed."""
        for process in self.processes:
            process.join(seconds)
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes if process.exitcode is not None]

    @property
    def out(self) -> str:
        return self._said("out")

    @property
    def err(self) -> str:
        return self._said("err")

    def _said(self, name: str) -> str:
        return "".join(path.read_text() for path in sorted(self._logs.glob(f"*.{name}")))


def igpt(
    n: int, *argv: object, restarts: int = 0, environment: Mapping[str, str] | None = None
) -> Several:
    """The command line on `n` processes, not waited for."""
    return Several(n, _command, tuple(map(str, argv)), restarts, environment or {})


def script(source: str, **environment: str) -> Several:
    """A program that has ended well, in a process whose modules have read no environment."""
    done = Several(1, _run, (source,), environment=environment)
    assert done.wait() == [0], done.err
    return done


def _run(source: str) -> None:
    exec(source, {})
    sys.stdout.flush()


def call(n: int, act: Callable[..., None], *args: Any) -> None:
    """`act(*args)` on `n` processes, which must end well; `act` is a function of a module."""
    several = Several(n, act, args)
    statuses = several.wait()
    assert statuses == [0] * n, several.err


def reaches(
    run: Path, step: int, seconds: float, ended: Callable[[], bool] = lambda: False
) -> bool:
    """Wait for a run to log that step; whether it did, before it ended or the time was up."""
    deadline, path = time.monotonic() + seconds, run / "metrics.jsonl"
    while time.monotonic() < deadline and not ended():
        if path.is_file() and f'"step": {step},' in path.read_text():
            return True
        time.sleep(0.002)
    return False
