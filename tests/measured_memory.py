"""What is taken on the processor: by tensors, as PyTorch counts it, or by all of the process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile


def peak_bytes(act: Callable[[], None]) -> int:
    """Bytes of the tensors that `act` makes, at its worst moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(sizes))


def resident_bytes(act: Callable[[], None]) -> int:
    """Bytes of memory that the process grows by in `act`, at its worst moment, whoever takes them.

    What was freed before and is taken again does not count. Skips where Linux does not tell.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
        before = _peak_of_process()
        act()
        return _peak_of_process() - before
    except OSError as error:
        pytest.skip(f"the peak of this process is not known: {error}")


def _peak_of_process() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(peak)
