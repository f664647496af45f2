"""What tensors take on the processor, as PyTorch's allocator counts it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def peak_bytes(act: Callable[[], None]) -> int:
    """Bytes of the tensors that `act` makes, at its worst moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(sizes))
