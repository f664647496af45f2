"""The processes of a run: joining them, and what they tell each other.

Small things (a count, a signal, a message) are sent from CPU memory, by gloo, so that they never
wait for an accelerator. What this module sends is JSON, never pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from igpt.config import ParallelConfig, Say, UserError
from igpt.device import communication, join_device
from igpt.parallel import launch
from igpt.parallel.meeting import meeting

_background: dist.ProcessGroup | None = None
_tensor = 1  # size of a tensor group: processes of consecutive ranks that compute the same pictures


@contextmanager
def processes(config: ParallelConfig) -> Iterator[None]:
    """In this context, work with the other processes that torchrun started; alone, do nothing.

    Raises LostProcess when one of them is gone or hangs.
    """
    global _tensor
    before, _tensor = _tensor, config.tensor
    try:
        with _joined(config):
            yield
    finally:
        _tensor = before


@contextmanager
def _joined(config: ParallelConfig) -> Iterator[None]:
    if launch.size() == 1 or dist.is_initialized():
        yield
        return
    global _background
    device, timeout = join_device(launch.local_rank()), timedelta(seconds=config.timeout)
    try:
        dist.init_process_group(
            communication(device),
            store=meeting().store,
            rank=launch.rank(),
            world_size=launch.size(),
            timeout=timeout,
        )
        _background = dist.new_group(backend="gloo", timeout=timeout)
        yield
        # Not in a `finally`: after an error others may be gone or wait elsewhere, and the barrier
        # would hang. Then only the end of the process helps.
        dist.barrier()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise launch.LostProcess(
            "another process of this run is gone, or did not answer for "
            f"{config.timeout} s (parallel.timeout)"
        ) from error
    _background = None
    dist.destroy_process_group()


def size() -> int:
    """The number of processes that work together; 1 for one that is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def dp_size() -> int:
    """The number of groups with pictures of their own: single processes, or `tensor` of them."""
    return size() // _tensor


def dp_rank() -> int:
    """The number of this process's group, from 0."""
    return rank() // _tensor


def is_dp_leader() -> bool:
    """Whether this process's results count: the first of a group, as all of it compute the same."""
    return rank() % _tensor == 0


def background_group() -> dist.ProcessGroup | None:
    """All processes once more, for messages between background threads; None for one alone."""
    return _background


# --- sharing work --------------------------------------------------------------------------------


def share_of_batch(batch_size: int, name: str = "train.batch_size") -> range:
    """The rows of every step's batch that this process is trained on.

    Raises UserError unless all can have the same number; it calls the batch size by its `name`.
    """
    if batch_size % dp_size():
        each = "processes" if _tensor == 1 else f"groups of {_tensor} processes"
        raise UserError(f"{name} ({batch_size}) must be a multiple of the {each} ({dp_size()})")
    rows = batch_size // dp_size()
    return range(dp_rank() * rows, (dp_rank() + 1) * rows)


def share_of(n: int) -> Iterator[tuple[int, bool]]:
    """Which of the pieces 0 to n - 1 this process computes, each with whether its result counts.

    All processes compute the same number of pieces, since a pass of a split model needs all of
    them. One that runs out repeats the last piece, which then does not count. In a tensor group,
    whose processes compute the same, only the first one's result counts.
    """
    for first in range(0, n, dp_size()):
        piece = first + dp_rank()
        yield min(piece, n - 1), piece < n and is_dp_leader()


# --- telling each other --------------------------------------------------------------------------


def sum_over_processes_(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def mean_over_processes_(values: Tensor) -> Tensor:
    """The mean of `values` over all processes, in place."""
    return sum_over_processes_(values).div_(size()) if size() > 1 else values


def max_over_processes(value: int) -> int:
    """The largest of the processes' values."""
    if size() == 1:
        return value
    held = torch.tensor(value)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def gather(value: Any) -> list[Any]:
    """The `value` of every process, anything that JSON can hold, in the order of their ranks."""
    if size() == 1:
        return [value]
    text = json.dumps(value).encode()
    lengths = torch.zeros(size(), dtype=torch.int64)
    lengths[rank()] = len(text)
    sum_over_processes_(lengths)
    texts = torch.zeros(size(), int(lengths.max()), dtype=torch.uint8)
    texts[rank(), : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    sum_over_processes_(texts)
    return [
        json.loads(bytes(row[:length].tolist()))
        for row, length in zip(texts, lengths.tolist(), strict=True)
    ]


def in_turn(part: Tensor) -> Iterator[Tensor]:
    """Every process's `part` [n, ...] in the order of ranks; n may differ, n = 0 is left out."""
    lengths = gather(len(part))
    held = part.new_zeros(size(), max(lengths), *part.shape[1:])
    held[rank(), : len(part)] = part
    for whole, length in zip(sum_over_processes_(held), lengths, strict=True):
        if length:
            yield whole[:length]


@contextmanager
def together() -> Iterator[None]:
    """If any process raises UserError or OSError in this block, all raise UserError.

    Its message is that of the first process that failed, by rank. Do not communicate in the block:
    the other processes would wait forever for one that failed.
    """
    failure: UserError | OSError | None = None
    try:
        yield
    except (UserError, OSError) as error:
        if size() == 1 and isinstance(error, UserError):
            raise
        failure = error
    if max_over_processes(failure is not None):
        message = next(text for text in gather(failure and str(failure)) if text is not None)
        raise UserError(message) from failure


def on_first(act: Callable[[], object]) -> None:
    """Call `act` in the first process only; all raise UserError when it fails (`together`)."""
    with together():
        if rank() == 0:
            act()


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, anything that JSON can hold; errors as `on_first`."""
    made: list[Any] = []
    on_first(lambda: made.append(make()))
    return gather(made[0] if made else None)[0]


def name_skipped(ours: Collection[str], say: Say) -> list[str]:
    """Names of the unreadable pictures that any process met, sorted.

    This process has met, and warned of, `ours`; the others are said now.
    """
    every = {name for names in gather(sorted(ours)) for name in names}
    for name in sorted(every.difference(ours)):
        say(f"warning: skipped an unreadable picture: {name}")
    return sorted(every)


def require_same(what: str, value: Any) -> None:
    """UserError unless all processes have the same `value`."""
    values = gather(value)
    if any(other != values[0] for other in values):
        raise UserError(f"the processes see different {what}: do all machines read the same files?")
