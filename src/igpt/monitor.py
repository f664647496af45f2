"""What a run says while it trains: `metrics.jsonl`, TensorBoard, and progress on stderr."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from igpt.config import UserError, first_line
from igpt.console import print_line
from igpt.disk import write_text

if TYPE_CHECKING:
    from rich.progress import Progress

Row = dict[str, float | int]
Seen = dict[str, float | int | None]  # a row read back from the file; None: it was not finite


def read_metrics(path: Path) -> list[Seen]:
    """The rows of a metrics file; a last line that a kill cut short is left out.

    Raises UserError when any other line is not JSON.
    """
    rows: list[Seen] = []
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line else {}
            if not isinstance(row, dict):
                raise ValueError
            rows += [row] if row else []
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not a row of metrics") from error
    return rows


def last_step(rows: Sequence[Seen]) -> int:
    """The latest step that there is a row of; 0 where there is none."""
    return max((int(row["step"] or 0) for row in rows), default=0)


def best_value(rows: Sequence[Seen], metric: str) -> float | None:
    """The least loss, or the most of any other metric; None where no row has a number of it."""
    values = [value for row in rows if (value := row.get(metric)) is not None]
    best = min if metric.endswith("loss") else max
    return best(values, default=None)


def training_minutes(rows: Sequence[Seen], batch_size: int) -> float:
    """Minutes that a run's optimizer steps took, from the throughput in its metric rows."""
    minutes, last = 0.0, 0
    for row in rows:
        if rate := row.get("pictures_per_second"):
            step = int(row["step"] or 0)
            minutes += (step - last) * batch_size / rate / 60
            last = step
    return minutes


class Monitor:
    """The log of one run; a context manager.

    On opening at `start_step`, rows of later steps are dropped: they belong to a part of the run
    that was killed before its checkpoint and is about to be repeated. With `is_owed`, the
    validation at `start_step` is about to be repeated too, and its row is dropped.
    """

    def __init__(
        self,
        run_dir: Path,
        start_step: int,
        total_steps: int,
        wandb: bool = False,
        *,
        is_owed: bool = False,
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.start_step, self.total_steps = start_step, total_steps
        self._run_dir, self._is_owed = run_dir, is_owed
        self._wandb = _start_wandb(run_dir) if wandb else None
        self._began = time.monotonic()
        self._progress: Progress | None = None

    def __enter__(self) -> Monitor:
        rows = read_metrics(self.path)
        kept = [row for row in rows if self._is_kept(row)]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        # Unbuffered, so that closing the file does not write again what a full disk refused.
        self._file = self.path.open("ab", buffering=0)
        self._tensorboard = _start_tensorboard(self._run_dir, self.start_step)
        if sys.stderr.isatty():
            self._progress = _start_progress()
            self._task = self._progress.add_task(
                "", total=self.total_steps, completed=self.start_step, loss="", rate=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._tensorboard.close()
        if self._progress is not None:
            self._progress.stop()
        if self._wandb is not None:
            self._wandb.finish()

    def log(self, row: Row) -> None:
        """Append a row; it has `step`, and `loss`, `lr`, `pictures_per_second` or `val_...`.

        Raises UserError when it cannot be written.
        """
        finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
        line = json.dumps(finite).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):  # nearly full, it takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            complaint = f"cannot write {self.path}: {error.strerror}"
            raise UserError(f"{complaint}; the last checkpoint, if any, is intact") from error
        step = int(row["step"])
        for name, value in row.items():
            if name != "step":
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in row.items() if k != "step"}, step=step)
        if self._progress is None:
            print_line(self._line(row), sys.stderr)
        else:
            self._advance(row)

    def _is_kept(self, row: Seen) -> bool:
        step = row["step"] or 0
        repeated = self._is_owed and step == self.start_step and "loss" not in row
        return 0 < self.start_step >= step and not repeated

    def _line(self, row: Row) -> str:
        head = f"step {row['step']}/{self.total_steps}"
        if "loss" not in row:
            values = (f"{k.removeprefix('val_')} {v:.4f}" for k, v in row.items() if k != "step")
            return f"{head}  validation {', '.join(values)}"
        return (
            f"{head}  loss {row['loss']:.4f} nats  lr {row['lr']:.1e}  "
            f"{row['pictures_per_second']:.1f} pictures/s  ETA {self._eta(int(row['step']))}"
        )

    def _advance(self, row: Row) -> None:
        assert self._progress is not None
        if "loss" not in row:
            self._progress.console.print(self._line(row))
            return
        self._progress.update(
            self._task,
            completed=row["step"],
            loss=f"loss {row['loss']:.4f} nats",
            rate=f"{row['pictures_per_second']:.1f} pictures/s",
        )

    def _eta(self, step: int) -> str:
        done = step - self.start_step
        seconds = (time.monotonic() - self._began) * (self.total_steps - step) / max(1, done)
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _start_tensorboard(run_dir: Path, start_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    folder = str(run_dir / "tensorboard")
    return SummaryWriter(folder, purge_step=start_step + 1)


def _start_wandb(run_dir: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("train.wandb asks for Weights & Biases: pip install wandb") from error
    known = run_dir / ".wandb-id"  # so that a resumed run continues its W&B run, wherever it lies
    if not known.is_file():
        write_text(known, uuid4().hex)
    identity = known.read_text(encoding="utf-8")
    try:
        return wandb.init(
            project="igpt", dir=str(run_dir), name=run_dir.name, id=identity, resume="allow"
        )
    except Exception as error:  # without a login or a network, errors of its own
        raise UserError(f"cannot start Weights & Biases: {first_line(error)}") from error


def _start_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}  {task.fields[rate]}  ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    progress.start()
    return progress
