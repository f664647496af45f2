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


def now_and_then(say: Say) -> Callable[[str], None]:
    """`say`, but for lines that come within SECONDS of the one before."""
    told = time.monotonic()

    def tell(line: str) -> None:
        nonlocal told
        if time.monotonic() - told >= SECONDS:
            say(line)
            told = time.monotonic()

    return tell


def with_progress(batches: Iterable[Pixels], count: int, say: Say) -> Iterator[Pixels]:
    """The batches as they are painted; of `count` pictures says how many are done."""
    done, tell = 0, now_and_then(say)
    for pixels in batches:
        yield pixels
        done += len(pixels)
        if done < count:
            tell(f"{done:,} of {count:,} pictures painted")


def telling(pictures: int, say: Say, passes: int = 1) -> Callable[[], None]:
    """What to call before each batch of so many pictures: it says how much of the work is done.

    Of several processes each computes its share of the batches; `passes` is how often all are.
    """
    from igpt.evaluate import BATCH
    from igpt.parallel.processes import dp_size

    batches = math.ceil(pictures / BATCH)
    calls, done, tell = passes * math.ceil(batches / dp_size()), 0, now_and_then(say)

    def check() -> None:
        nonlocal done
        tell(f"{100 * done // calls} % of {pictures:,} pictures")
        done += 1

    return check
