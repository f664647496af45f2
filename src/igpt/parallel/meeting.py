"""How the processes of one start find each other: through torchrun's store.

The store outlives the processes that torchrun restarts, with what they left in it: addresses, too.
So the first process of every start gives it a new name, each other one signs under the name that
it reads, and keeps the name when its signature is among those that the first one saw.
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

START_SECONDS = 300  # that a process waits for the others to start
FAILURES = "failures"  # the key that failing processes count themselves under


@dataclass(frozen=True)
class Meeting:
    """What the processes of this start have in common."""

    store: Any  # where they leave words for each other, whatever else they are doing
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
        with suppress(dist.DistStoreError):  # the name of an earlier start, or some are not there
            store.wait([f"{name}/all"], timedelta(seconds=0.2))
            signatures = store.get(f"{name}/all").decode().split("\n")
            if signature in signatures:
                return name, store, signatures
    raise dist.DistStoreError("the first process did not sign")


def is_restart() -> bool:
    """Whether torchrun started this process, or one that works with it, in place of another."""
    return launch.is_restart() if launch.size() == 1 else meeting().is_restart


def is_first_to_fail() -> bool:
    """Whether no other process has asked this before: the one to tell the user."""
    try:
        return meeting().store.add(FAILURES, 1) == 1
    except launch.LostProcess:  # nobody else is there to tell
        return True
    except RuntimeError:  # the store went with a process that failed before
        return False
