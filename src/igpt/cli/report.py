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


def stopped_status(caught: signal.Signals) -> int:
    """Exit status of a run that a signal stopped and that was saved: only Ctrl-C is a failure."""
    return INTERRUPTED if caught == signal.SIGINT else 0
