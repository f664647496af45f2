"""What a command has to say when it is done."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

LOST_PROCESS, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit statuses


@dataclass(frozen=True)
class Report:
    """The same result for people and for machines."""

    text: str  # for stdout
    values: dict[str, Any]  # for stdout with --json
    status: int = 0  # exit status


def stopped(caught: signal.Signals, where: str, again: str, values: dict[str, Any]) -> Report:
    """Of a run that a signal stopped and that was saved: only Ctrl-C is a failure.

    `again` is the command that goes on with it.
    """
    return Report(
        f"stopped at {where}; go on with: {again}",
        {**values, "signal": caught.name},
        INTERRUPTED if caught == signal.SIGINT else 0,
    )
