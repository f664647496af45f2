"""Names for the types of arrays, by what they hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # RGB: a picture [H, W, 3] or several [B, H, W, 3]
Tokens = npt.NDArray[np.uint16]  # indexes of the palette's colours, a row for a picture: [B, T]
Labels = npt.NDArray[np.int64]  # a class for each picture: [N]
Floats = npt.NDArray[np.float64]
