"""The largest difference of each comparison with another program, listed after the tests."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

BOUND = 1e-5  # absolute, and relative to values above one

largest: dict[str, float] = {}
compared: Counter[str] = Counter()


def assert_agree(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5; the difference is remembered under the comparison's name."""
    torch.testing.assert_close(ours, theirs, atol=BOUND, rtol=BOUND)
    largest[what] = max(largest.get(what, 0.0), (ours - theirs).abs().max().item())
    compared[what] += 1


def summary() -> list[str]:
    return [
        f"{what}: {largest[what]:.1e} in {compared[what]} comparisons" for what in sorted(largest)
    ]
