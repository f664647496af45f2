"""Say how far a command is, which may take hours."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
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


def telling(pictures: int, say: Say, passes: int = 1) -> Callable[[], None]:
    """What to call before each batch of so many pictures: it says how much of the work is done.

    Of several processes each computes its share of the batches; `passes` is how often all are.
    """
    from igpt.evaluate import BATCH
    from igpt.parallel.processes import dp_size

    batches = math.ceil(pictures / BATCH)
    calls, done, told = passes * math.ceil(batches / dp_size()), 0, time.monotonic()

    def tell() -> None:
        nonlocal done, told
        if time.monotonic() - told >= SECONDS:
            say(f"{100 * done // calls} % of {pictures:,} pictures")
            told = time.monotonic()
        done += 1

    return tell
