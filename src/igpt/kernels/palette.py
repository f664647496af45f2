"""A palette's table of all colours, in a fifth of its memory, for sets of pictures.

Its plain twin is the look-up in the table itself; `Palette.encode` chooses between the two.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from igpt.kernels.build import load, threads

CELLS, CELL = 1 << 18, 12  # cells of 4x4x4 colours; numbers of 16 bits in each (palette.cpp)


def color_cells(table: npt.NDArray[np.uint16]) -> ColorCells | None:
    """The cells of a palette's table [2^24], none filled yet; None where the kernel is not."""
    library = load("palette")
    return None if library is None else ColorCells(library, table)


class ColorCells:
    """Each cell names three tokens, and which of them each colour has (`palette.cpp`)."""

    def __init__(self, library: ctypes.CDLL, table: npt.NDArray[np.uint16]) -> None:
        library.look_up.restype = ctypes.c_bool
        self._library, self._table = library, table
        self._cells = np.full((CELLS, CELL), np.iinfo(np.uint16).max, dtype=np.uint16)

    def fill(self, corner: int, side: int) -> None:
        """Fill the cells of a cube of `side`^3 colours from the table, which is filled there.

        `corner` is its darkest colour, as a number of 24 bits. Other threads may look up meanwhile.
        """
        self._library.fill(_at(self._table), ctypes.c_uint32(corner), side, _at(self._cells))

    def look_up(self, colors: npt.NDArray[np.uint8], tokens: npt.NDArray[np.uint16]) -> bool:
        """Write the tokens [N] of `colors` [N, 3], both contiguous; whether all were known."""
        size = ctypes.c_int64(len(colors))
        table, cells = _at(self._table), _at(self._cells)
        return bool(self._library.look_up(_at(colors), size, table, cells, _at(tokens), threads()))


def _at(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
