"""What a command has to say when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

USER_ERROR, INTERRUPTED = 2, 130  # exit statuses


@dataclass(frozen=True)
class Report:
    """The same result for people and for machines."""

    text: str  # for stdout
    values: dict[str, Any]  # for stdout with --json
    status: int = 0  # exit status
