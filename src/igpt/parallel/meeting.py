"""How the processes of one start find each other: through torchrun's store.

When torchrun restarts processes, the store stays, with everything that the earlier ones left in it,
addresses too. So the first process makes up a new name for every start. Each other process writes a
signature under the name that it reads, and knows that the name is not an old one when the first
process lists this signature among those that it saw.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from igpt.parallel import launch

START_SECONDS = 300  # how long a process waits for the others to start
FAILURES = "failures"  # the key under which failing processes are counted


@dataclass(frozen=True)
class Meeting:
    """What the processes of this start share."""

    store: Any  # for messages to each other at any time, whatever else they are doing
    is_restart: bool  # whether torchrun started any of them in place of one that failed


@cache
def meeting() -> Meeting:
    """Meet the other processes of this start. Raises LostProcess when one does not come."""
    try:
        name, store, signatures = _sign()
    except dist.DistError as error:
        raise launch.LostProcess(
            f"another process of this run did not start within {START_SECONDS} s"
        ) from error
    named = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    return Meeting(named, any(text.endswith("True") for text in signatures))


def _sign() -> tuple[str, Any, list[str]]:
    """The name of this start, torchrun's store, and the signatures of all processes."""
    patience = timedelta(seconds=START_SECONDS)
    store: Any = next(rendezvous("env://", timeout=patience))[0]
    signature = f"{uuid4().hex} {launch.is_restart()}"
    others = range(1, launch.size())
    if launch.rank() == 0:
        name = uuid4().hex
        store.set("start", name)
        store.wait([f"{name}/{rank}" for rank in others], patience)
        signatures = [signature, *(store.get(f"{name}/{rank}").decode() for rank in others)]
        store.set(f"{name}/all", "\n".join(signatures))
        return name, store, signatures
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        name = store.get("start").decode()
        store.set(f"{name}/{launch.rank()}", signature)
        with suppress(dist.DistStoreError):  # an earlier start's name, or not all have signed yet
            store.wait([f"{name}/all"], timedelta(seconds=0.2))
            signatures = store.get(f"{name}/all").decode().split("\n")
            if signature in signatures:
                return name, store, signatures
    raise dist.DistStoreError("the first process did not sign")


def is_restart() -> bool:
    """Whether torchrun started this process, or another of the run, in place of a failed one."""
    return launch.is_restart() if launch.size() == 1 else meeting().is_restart


def is_first_to_fail() -> bool:
    """Whether this process is the first to ask, and so the one to tell the user of a failure."""
    try:
        return meeting().store.add(FAILURES, 1) == 1
    except launch.LostProcess:  # the processes never met, so each one tells the user
        return True
    except RuntimeError:  # the store is gone, with a process that failed earlier
        return False
