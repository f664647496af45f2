"""Save pictures while others are still being painted, which may take hours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.config import Say

if TYPE_CHECKING:
    from PIL import Image

    from igpt.types import Pixels

SECONDS = 30  # between two lines of progress


def save_painted(
    batches: Iterable[Pixels],
    names: Sequence[str],
    out: Path,
    sheet: Callable[[Pixels], Image.Image],
    say: Say,
) -> Path:
    """Save pictures that come in batches [b, H, W, 3], called `names`, as `save_pictures` does.

    A folder gets each batch as it comes, so that what was painted is kept after an interruption. A
    sheet or .npz is made of all pictures, at the end. Returns where they are.
    """
    import numpy as np

    from igpt.plots import save_pictures

    kept: list[Pixels] = []
    done, told = 0, time.monotonic()
    for pixels in batches:
        if out.suffix:
            kept.append(pixels)
        else:
            save_pictures(pixels, names[done : done + len(pixels)], out, partial(sheet, pixels))
        done += len(pixels)
        if done < len(names) and time.monotonic() - told >= SECONDS:
            say(f"{done:,} of {len(names):,} pictures painted")
            told = time.monotonic()
    if kept:
        whole = np.concatenate(kept)
        return save_pictures(whole, names, out, partial(sheet, whole))
    return out
