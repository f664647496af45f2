"""What torchrun tells each process that it starts, read from environment variables.

Imports nothing heavy: the command line uses it before anything else is loaded.
"""

from __future__ import annotations

import os


class LostProcess(Exception):
    """Another process of the run is gone or does not answer; this one cannot go on."""


def size() -> int:
    """The number of processes that were started together, over all machines; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among all of them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that prints and writes the run directory."""
    return rank() == 0


def is_restart() -> bool:
    """Whether torchrun started these processes in place of others that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
