"""The largest difference of each comparison with another program, listed after the tests."""

from __future__ import annotations

import torch
from torch import Tensor

BOUND = 1e-5  # absolute, and relative to values above one

found: dict[str, tuple[float, int]] = {}  # by comparison: largest difference, how many


def remember(what: str, difference: float, times: int = 1) -> None:
    """One comparison's difference, or what another process found in several."""
    largest, count = found.get(what, (0.0, 0))
    found[what] = max(largest, difference), count + times


def assert_agree(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5; the difference is remembered under the comparison's name."""
    torch.testing.assert_close(ours, theirs, atol=BOUND, rtol=BOUND)
    remember(what, (ours - theirs).abs().max().item())


def summary() -> list[str]:
    return [
        f"{what}: {largest:.1e} in {count} comparisons"
        for what, (largest, count) in sorted(found.items())
    ]
