"""Colour clusters: what turns pixels into tokens and back (paper, section 3.2).

Encoding finds the exact nearest cluster, by a look-up in a table of all 2^24 colours. The table is
divided into cells of 16x16x16 colours. A cell is filled when a picture first has a colour in it,
from the few clusters that can be nearest to any of the cell's colours. Sets of pictures are looked
up in a smaller form of the same table (`kernels/palette.cpp`), once it knows all of their colours.
"""

from __future__ import annotations

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from igpt.config import PaletteConfig, UserError
from igpt.disk import write_atomically
from igpt.types import Floats, Pixels, Tokens

if TYPE_CHECKING:
    from igpt.kernels.palette import ColorCells

CELL = 16  # colours along a side of the table's cells
UNKNOWN = 65535  # marks a colour whose cell is not filled yet; so K is at most 65535
RANGE_SLACK = 1e-3  # rounding may leave k-means centres slightly outside [-1, 1]
SLACK = 1e-9  # added to bounds on squared distances; far above float64's error
# More distinct colours than EXACT are first averaged in bins of 4x4x4: k-means on the millions in a
# photo collection takes minutes longer.
EXACT, BIN = 50_000, 4
SEEDS = 1 << 32  # scikit-learn takes seeds below this
GATHER = 1 << 16  # pixels looked up at a time, so that their indexes stay in the cache
# Pixels that one thread works on at a time; NumPy gathers without holding the interpreter's lock.
PART = 1 << 20


class Palette:
    """K colours, float32 [K, 3] in [-1, 1]: OpenAI's convention, pixel = round(127.5 (c + 1)).

    Raises UserError when `clusters` has another shape or range.
    """

    def __init__(self, clusters: npt.ArrayLike) -> None:
        array = np.asarray(clusters)
        if array.ndim != 2 or array.shape[1] != 3 or not 1 <= len(array) <= UNKNOWN:
            shape = list(array.shape)
            raise UserError(f"clusters must have shape [K, 3], K up to {UNKNOWN:,}, got {shape}")
        if array.dtype.kind != "f":
            raise UserError(f"clusters must be floats in [-1, 1], got {array.dtype}")
        if not np.isfinite(array).all() or np.abs(array).max() > 1 + RANGE_SLACK:
            raise UserError("clusters must lie in [-1, 1]")
        self.clusters: npt.NDArray[np.float32] = array.astype(np.float32)
        self._table = np.full(1 << 24, UNKNOWN, dtype=np.uint16)
        self._cells: ColorCells | None = None

    @property
    def n_colors(self) -> int:
        return len(self.clusters)

    @property
    def colors(self) -> Pixels:
        """The clusters as colours, uint8 [K, 3]."""
        unit = self.clusters.astype(np.float64)
        return np.clip(np.rint(127.5 * (unit + 1)), 0, 255).astype(np.uint8)

    def __repr__(self) -> str:
        return f"Palette({self.n_colors} colours)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Palette) and np.array_equal(self.clusters, other.clusters)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Palette], tuple[npt.NDArray[np.float32]]]:
        return Palette, (self.clusters,)  # without the table: a copy fills its own

    @classmethod
    def fit(cls, images: Pixels, n_colors: int = 512, seed: int = 0) -> Palette:
        """k-means on the pixels of uint8 `images` [B, H, W, 3], its clusters from dark to light.

        Works on the distinct colours, weighted by how often they occur: k-means then minimises the
        same sum as on all pixels, in a fraction of the time, though it may start from other
        centres. More than 50,000 distinct colours are first averaged in fine bins, unless there are
        fewer bins than `n_colors`. With fewer distinct colours than `n_colors`, the palette is
        just those colours, and a warning says so.
        """
        if n_colors < 1:
            raise UserError(f"a palette has at least 1 colour, got {n_colors}")
        packed, counts = _count_colors(_some(images).reshape(-1, 3))
        colors = _unpack(packed)  # [U, 3]
        if len(colors) <= n_colors:
            if len(colors) < n_colors:
                warnings.warn(
                    f"the pictures have {len(colors)} colours, fewer than the {n_colors} asked "
                    f"for: the palette has {len(colors)}",
                    stacklevel=2,
                )
            return cls(_by_luminance(_to_unit(colors)))
        from sklearn.cluster import KMeans  # takes a second, and few colours do not need it

        points, weights = _to_unit(colors), counts.astype(np.float64)
        if len(points) > EXACT:
            bins = _binned(colors, weights)
            if len(bins[0]) >= n_colors:
                points, weights = bins
        kmeans = KMeans(n_colors, n_init=1, random_state=seed % SEEDS).fit(
            points, sample_weight=weights
        )
        centers = np.unique(kmeans.cluster_centers_.astype(np.float32), axis=0)
        palette = cls(_by_luminance(centers))
        used = np.unique(palette.encode(colors.reshape(1, 1, -1, 3)))
        return palette if len(used) == palette.n_colors else cls(palette.clusters[used])

    def encode(self, images: Pixels) -> Tokens:
        """The nearest cluster of every pixel of `images` [B, H, W, 3]: uint16 [B, H*W].

        Exact: equal to brute force in float64, ties to the lowest index. There may be no pictures.
        """
        flat = _checked(images).reshape(-1, 3)
        tokens = np.empty(len(flat), dtype=np.uint16)
        by_picture = tokens.reshape(len(images), images.shape[1] * images.shape[2])
        starts = range(0, len(flat), PART)
        if len(starts) > 1 and self._known_by_cells(flat, tokens):
            return by_picture

        def encode_part(start: int) -> None:
            self._look_up(flat[start : start + PART], tokens[start : start + PART])

        if len(starts) > 1:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(encode_part, starts))
        elif starts:
            encode_part(0)
        return by_picture

    def decode(self, tokens: npt.NDArray[Any]) -> Pixels:
        """Pixels uint8 [B, S, S, 3] of raster tokens [B, S*S].

        Raises UserError for a token outside the palette and for a length that is no square.
        """
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.n_colors):
            bad = tokens.min() if tokens.min() < 0 else tokens.max()
            raise UserError(f"token {bad} is outside the palette of {self.n_colors} colours")
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise UserError(f"{tokens.shape[1]} tokens are not a square picture")
        return self.colors[tokens].reshape(len(tokens), side, side, 3)

    def psnr(self, images: Pixels) -> float:
        """How near the palette's colours come to those of `images` [B, H, W, 3]: PSNR in dB."""
        flat, colors = _some(images).reshape(-1, 3), self.colors.astype(np.float32)
        total = 0.0  # a sum of squared whole numbers: exact in any order
        for start in range(0, len(flat), PART):
            part = flat[start : start + PART]
            nearest = colors[self.encode(part[None, None])[0]]  # [n, 3]
            total += float(np.sum((nearest - part) ** 2, dtype=np.float64))
        error = total / flat.size
        return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))

    def save(self, path: str | Path) -> None:
        """Write the clusters as `.npy`, whole or not at all."""
        contents = io.BytesIO()
        np.save(contents, self.clusters)
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(contents.getvalue()))

    @classmethod
    def load(cls, path: str | Path) -> Palette:
        """Read clusters from `.npy`, OpenAI's `kmeans_centers.npy` among them; never unpickles.

        Raises UserError when the file is missing, truncated, or not clusters.
        """
        try:
            clusters = np.load(path, allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(f"no palette file {path}") from error
        except PermissionError:  # nothing is wrong with the file
            raise
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise UserError(f"{path} is not a .npy file of colour clusters") from error
        try:
            return cls(clusters)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def _known_by_cells(self, colors: Pixels, tokens: Tokens) -> bool:
        """Write the tokens [N] of `colors` [N, 3] by the kernel, if it is there and knows all."""
        # It imports PyTorch, for which few colours cannot wait.
        from igpt.kernels.palette import color_cells

        if self._cells is None and (cells := color_cells(self._table)):
            corners = _pack(CELL * _grid(256 // CELL))
            for corner in corners[self._table[corners] != UNKNOWN]:
                cells.fill(int(corner), CELL)
            self._cells = cells
        return bool(self._cells and self._cells.look_up(np.ascontiguousarray(colors), tokens))

    def _look_up(self, colors: Pixels, tokens: Tokens) -> None:
        """Write the tokens [N] of `colors` [N, 3].

        Safe in several threads: two that fill the same cell at once write the same values.
        """
        for start in range(0, len(colors), GATHER):
            packed = _pack(colors[start : start + GATHER])
            out = tokens[start : start + GATHER]
            np.take(self._table, packed, out=out, mode="clip")
            if out.max() == UNKNOWN:
                self._fill(np.unique(packed[out == UNKNOWN]))
                np.take(self._table, packed, out=out, mode="clip")

    def _fill(self, packed: npt.NDArray[np.uint32]) -> None:
        """Fill the table's cells that hold the colours `packed`."""
        cells = np.unique(_unpack(packed) // CELL, axis=0)  # [n, 3]
        clusters = self.clusters.astype(np.float64)
        steps = _grid(CELL)
        for cell in cells:
            low = cell.astype(np.int64) * CELL
            colors = low + steps  # [CELL^3, 3]
            near = _candidates(clusters, _to_unit(low), _to_unit(low + CELL - 1))
            nearest = near[_nearest(_to_unit(colors), clusters[near])]
            self._table[_pack(colors)] = nearest
            if self._cells:
                self._cells.fill(int(_pack(low[None])[0]), CELL)


def recipe_colors(config: PaletteConfig) -> int:
    """How many colours a recipe's palette has; UserError where it is a file that is none."""
    return config.colors if config.path is None else Palette.load(config.path).n_colors


def _count_colors(pixels: Pixels) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """The distinct colours [U] of `pixels` [N, 3], packed and sorted, and how many of each.

    Many pixels are counted in a table of all colours, since sorting them all at once takes several
    times their memory.
    """
    if len(pixels) <= PART:
        return np.unique(_pack(pixels), return_counts=True)
    counts = np.zeros(1 << 24, dtype=np.int64)
    for start in range(0, len(pixels), PART):
        found, times = np.unique(_pack(pixels[start : start + PART]), return_counts=True)
        counts[found] += times
    packed = np.flatnonzero(counts)
    return packed.astype(np.uint32), counts[packed]


def _binned(colors: Pixels, counts: Floats) -> tuple[Floats, npt.NDArray[Any]]:
    """Mean colours [M, 3] in [-1, 1] of the bins that `colors` [U, 3] fall in, and counts [M].

    This loses each colour's distance from its bin's mean, which hardly moves the k-means centres.
    """
    bins, which = np.unique(_pack(colors // BIN), return_inverse=True)
    weights = np.bincount(which, counts, len(bins))
    unit = _to_unit(colors)
    sums = [np.bincount(which, counts * unit[:, channel], len(bins)) for channel in range(3)]
    return np.stack(sums, axis=1) / weights[:, None], weights


def _candidates(clusters: Floats, low: Floats, high: Floats) -> npt.NDArray[np.intp]:
    """Clusters, in order, that can be nearest to some colour of the box from `low` to `high`."""
    below, above = low - clusters, clusters - high  # [K, 3]
    closest = (np.maximum(np.maximum(below, above), 0) ** 2).sum(1)
    farthest = (np.maximum(np.abs(below), np.abs(above)) ** 2).sum(1)
    return np.flatnonzero(closest <= farthest.min() + SLACK)


def _nearest(colors: Floats, clusters: Floats) -> npt.NDArray[np.intp]:
    """Index of the nearest of clusters [C, 3] for colours [N, 3], ties to the lowest."""
    red, green, blue = (colors[:, None, i] - clusters[None, :, i] for i in range(3))
    distance = red * red + green * green + blue * blue  # [N, C]
    return np.argmin(distance, axis=1)


def _checked(images: Pixels) -> Pixels:
    if not isinstance(images, np.ndarray):
        raise UserError(f"pictures must be an array [B, H, W, 3], got a {type(images).__name__}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"pictures must be uint8 [B, H, W, 3], got {images.dtype} {list(images.shape)}"
        )
    return images


def _some(images: Pixels) -> Pixels:
    """The same as `_checked`, and at least one pixel."""
    if _checked(images).size == 0:
        raise UserError("no pictures given")
    return images


def _to_unit(colors: npt.NDArray[Any]) -> Floats:
    """Colours 0 to 255, scaled to [-1, 1] as OpenAI's clusters are."""
    return colors.astype(np.float64) / 127.5 - 1


def _pack(colors: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Colours [N, 3] as 24-bit numbers [N]."""
    padded = np.zeros(colors.size + 1, dtype=np.uint8)
    padded[1:] = colors.reshape(-1)
    # Reads each colour and the byte before it as one 32-bit number; the mask removes that byte.
    fours = np.ndarray((len(colors),), ">u4", padded, strides=(3,))
    return np.bitwise_and(fours, 0xFFFFFF, dtype=np.uint32)


def _grid(side: int) -> npt.NDArray[np.int64]:
    """The points [side^3, 3] with coordinates from 0 to side - 1."""
    return np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)


def _unpack(packed: npt.NDArray[np.uint32]) -> Pixels:
    """The inverse of `_pack`: [N] to uint8 [N, 3]."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)


def _by_luminance(clusters: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Clusters from dark to light (ITU-R BT.601), so that neighbouring greys have near indexes."""
    key = clusters @ np.array([0.299, 0.587, 0.114])
    return clusters[np.argsort(key, kind="stable")].astype(np.float32)
