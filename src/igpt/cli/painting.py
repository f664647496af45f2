"""Say how far painting is, which may take hours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from igpt.config import Say

if TYPE_CHECKING:
    from igpt.types import Pixels

SECONDS = 30  # between two lines of progress


def with_progress(batches: Iterable[Pixels], count: int, say: Say) -> Iterator[Pixels]:
    """The batches as they are painted; of `count` pictures says how many are done."""
    done, told = 0, time.monotonic()
    for pixels in batches:
        yield pixels
        done += len(pixels)
        if done < count and time.monotonic() - told >= SECONDS:
            say(f"{done:,} of {count:,} pictures painted")
            told = time.monotonic()
