"""The result that a command reports when it is done."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igpt.parallel import launch

LOST_PROCESS, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit statuses


@dataclass(frozen=True)
class Report:
    """The same result for people and for machines."""

    text: str  # for stdout
    values: dict[str, Any]  # for stdout with --json
    status: int = 0  # exit status


def draw_losses(run: Path) -> None:
    """Draw the figure of a run's losses; only the first process does."""
    from igpt.checkpoint import RunDirectory
    from igpt.monitor import read_metrics
    from igpt.plots.curves import loss_figure, save_figure

    folder = RunDirectory(run)
    if launch.is_first():
        rows = read_metrics(folder.metrics)
        save_figure(loss_figure(rows), folder.figures / "loss.png")


def and_skipped(count: int) -> str:
    """What is added of pictures that could not be read: "; 3 unreadable pictures skipped"."""
    return f"; {count:,} unreadable picture{'s' * (count != 1)} skipped" if count else ""


def stopped(caught: signal.Signals, where: str, again: str, values: dict[str, Any]) -> Report:
    """The report of a run that a signal stopped and that was saved; only Ctrl-C is a failure.

    `again` is the command that goes on with the run.
    """
    return Report(
        f"stopped at {where}; go on with: {again}",
        {**values, "signal": caught.name},
        INTERRUPTED if caught == signal.SIGINT else 0,
    )
