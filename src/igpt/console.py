"""Lines on stdout and stderr."""

from __future__ import annotations

import os
from typing import TextIO


def print_line(text: str, stream: TextIO) -> None:
    """Print at once, even if the reader has gone, as `head` does, or `tee` at Ctrl-C."""
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # So that neither the next line nor Python's flush at exit fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
