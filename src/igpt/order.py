"""The permutation pi in which a picture is read (paper, section 2.1), and the codec made with it.

pi[i] is the raster index of the i-th pixel that the model reads. Only the codec turns pixels into
tokens, by the palette and then pi, and tokens into pixels, by the inverse of pi and then the
palette.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from igpt.config import UserError
from igpt.palette import UNKNOWN, Palette
from igpt.rng import numpy_rng
from igpt.types import Pixels, Tokens

Order = npt.NDArray[np.int64]  # [T]

ORDERS = ("raster", "column", "snake", "hilbert", "random")


def permutation(order: str, size: int) -> Order:
    """pi [T] of a picture of `size` x `size` pixels.

    raster: row by row. column: column by column. snake: rows, every other one backwards.
    hilbert: a space-filling curve, generalised to any size; every step goes to a neighbour.
    random:SEED (random is random:0): shuffled.

    Raises UserError for any other name.
    """
    name, _, seed = order.partition(":")
    raster = np.arange(size * size).reshape(size, size)
    if order == "raster":
        return raster.ravel()
    if order == "column":
        return raster.T.ravel()
    if order == "snake":
        snake = raster.copy()
        snake[1::2] = snake[1::2, ::-1]
        return snake.ravel()
    if order == "hilbert":
        return np.array([y * size + x for x, y in _hilbert(0, 0, size, 0, 0, size)])
    if name == "random" and (seed.isdecimal() or order == "random"):
        return numpy_rng(int(seed or 0), "order").permutation(size * size)
    raise UserError(f"unknown order '{order}', expected one of: {', '.join(ORDERS)}, random:SEED")


def inverse(pi: Order) -> Order:
    """The permutation that undoes pi: inverse(pi)[pi[i]] = i."""
    return np.argsort(pi)


def _hilbert(x: int, y: int, ax: int, ay: int, bx: int, by: int) -> Iterator[tuple[int, int]]:
    """The generalised Hilbert curve of J. Cerveny (github.com/jakubcerveny/gilbert).

    Walks the rectangle at (x, y) spanned by the major axis a and the minor axis b.
    """
    width, height = abs(ax + ay), abs(bx + by)
    dax, day, dbx, dby = (int(np.sign(v)) for v in (ax, ay, bx, by))
    if height == 1:
        yield from ((x + i * dax, y + i * day) for i in range(width))
        return
    if width == 1:
        yield from ((x + i * dbx, y + i * dby) for i in range(height))
        return
    ax2, ay2, bx2, by2 = ax // 2, ay // 2, bx // 2, by // 2
    if 2 * width > 3 * height:  # long: two parts, of which the first has an even length
        if abs(ax2 + ay2) % 2 and width > 2:
            ax2, ay2 = ax2 + dax, ay2 + day
        yield from _hilbert(x, y, ax2, ay2, bx, by)
        yield from _hilbert(x + ax2, y + ay2, ax - ax2, ay - ay2, bx, by)
        return
    if abs(bx2 + by2) % 2 and height > 2:
        bx2, by2 = bx2 + dbx, by2 + dby
    yield from _hilbert(x, y, bx2, by2, ax2, ay2)  # up, along, down
    yield from _hilbert(x + bx2, y + by2, ax, ay, bx - bx2, by - by2)
    x, y = x + (ax - dax) + (bx2 - dbx), y + (ay - day) + (by2 - dby)
    yield from _hilbert(x, y, -bx2, -by2, -(ax - ax2), -(ay - ay2))


class Encoded:
    """Pictures that came as tokens, as OpenAI's data sets do: uint16 `tokens` [N, T], raster order.

    Only the palette that they were made with tells which colour a token is. Raises UserError for
    anything but whole numbers that can be tokens.
    """

    def __init__(self, tokens: npt.ArrayLike) -> None:
        array = np.asarray(tokens)
        if array.dtype.kind not in "iu" or array.ndim != 2:
            got = f"{array.dtype} {list(array.shape)}"
            raise UserError(f"encoded pictures must be whole numbers [N, T], got {got}")
        if array.size and not (array.min() >= 0 and array.max() < UNKNOWN):
            bad = array.min() if array.min() < 0 else array.max()
            raise UserError(f"tokens must lie in 0 to {UNKNOWN - 1}, got {bad}")
        self.tokens: Tokens = array.astype(np.uint16, copy=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, chosen: slice | npt.NDArray[np.integer]) -> Encoded:
        return Encoded(self.tokens[chosen])


def need_pixels(images: Pixels | Encoded) -> Pixels:
    """The pictures [N, H, W, 3]; UserError for encoded ones, where only pixels will do."""
    if isinstance(images, Encoded):
        raise UserError("this needs pictures, and the data are tokens of a palette")
    return images


class Codec:
    """Pictures to tokens in the model's order, and back."""

    def __init__(self, palette: Palette, order: str, image_size: int) -> None:
        self.palette, self.order, self.image_size = palette, order, image_size
        self.pi = permutation(order, image_size)
        self._inverse = inverse(self.pi)

    @property
    def n_tokens(self) -> int:
        return self.image_size**2

    @property
    def vocab_size(self) -> int:
        return self.palette.n_colors

    def encode(self, images: Pixels | Encoded) -> Tokens:
        """Tokens [B, T] in the model's order, of any pictures that `raster_tokens` takes."""
        return self.reorder(self.raster_tokens(images))

    def raster_tokens(self, images: Pixels | Encoded) -> Tokens:
        """Tokens [B, T] row by row, of uint8 images [B, H, W, 3] or of encoded ones.

        Raises UserError when they are not of the codec's size, or encoded with a larger palette.
        """
        size = self.image_size
        if not isinstance(images, Encoded):
            if images.shape[1:3] != (size, size):
                raise UserError(f"pictures must be {size}x{size}, got {list(images.shape)}")
            return self.palette.encode(images)
        tokens = images.tokens
        if tokens.shape[1] != self.n_tokens:
            raise UserError(
                f"the encoded pictures have {tokens.shape[1]} tokens each, {size}x{size} pixels "
                f"are {self.n_tokens}"
            )
        if tokens.size and tokens.max() >= self.vocab_size:
            raise UserError(
                f"the encoded pictures have token {tokens.max()}, the palette has only "
                f"{self.vocab_size} colours: they were made with another one"
            )
        return tokens

    def reorder(self, raster_tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Raster tokens [B, T] in the model's order."""
        return raster_tokens[:, self.pi]

    def decode(self, tokens: npt.NDArray[Any]) -> Pixels:
        """Pictures uint8 [B, H, W, 3] of tokens [B, T].

        Raises UserError for a token outside the palette, and for another number of them.
        """
        if tokens.shape[1:] != (self.n_tokens,):
            raise UserError(f"tokens must be [B, {self.n_tokens}], got {list(tokens.shape)}")
        return self.palette.decode(tokens[:, self._inverse])
