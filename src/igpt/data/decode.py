"""Pictures of every kind, as uint8 [S, S, 3]."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from igpt.config import UserError
from igpt.data.sources import Pictures, UnreadablePicture

Pixels = npt.NDArray[np.uint8]
Fit = Callable[[Image.Image, int], Pixels]  # picture, size -> [size, size, 3]

# With antialiasing, as the Hugging Face ImageGPT processor; the paper does not state its filter.
FILTER = Image.Resampling.BILINEAR
CROP = 224  # ImageNet's crop before the reduction (paper, section 3.1)
NAMED = 3  # unreadable pictures that a warning names


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB: upright, alpha over white, 16 bits and floats scaled and not clipped."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image)
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of floats in [0, 1], to 8 bits; Pillow's own conversion clips at 255."""
    values = np.asarray(image, dtype=np.float64)
    top = 1.0 if image.mode == "F" and values.max() <= 1 else 65535.0
    if values.max() <= 255 and image.mode == "F" and top > 1:
        top = 255.0
    grey = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def fit_square(image: Image.Image, size: int) -> Pixels:
    """The RGB picture as [size, size, 3]: short side to `size`, centre crop.

    A picture that has the size already is not resampled.
    """
    return np.asarray(_centre(resize_short(image, size), size))


def imagenet_centre(image: Image.Image, size: int) -> Pixels:
    """ImageNet's evaluation: short side 224, centre crop, then down to `size` (section 3.1)."""
    crop = _centre(resize_short(image, CROP), CROP)
    return np.asarray(crop.resize((size, size), FILTER))


def resize_short(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    if short == side:
        return image
    width, height = (max(side, round(length * side / short)) for length in image.size)
    return image.resize((width, height), FILTER)


def _centre(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class Decoded:
    """The readable pictures of a split."""

    images: Pixels  # [M, S, S, 3]
    kept: npt.NDArray[np.int64]  # [M], their places in the split
    skipped: list[str]  # names of the others


def decode_all(pictures: Pictures, size: int, fit: Fit = fit_square) -> Decoded:
    """Decode a whole split to [M, size, size, 3].

    Unreadable pictures are left out, and named in a warning. Raises UserError when none is left.
    """

    def decode(i: int) -> Pixels | str:
        try:
            return fit(to_rgb(pictures.image(i)), size)
        except UnreadablePicture as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(decode, range(len(pictures))))
    kept = [i for i, result in enumerate(results) if not isinstance(result, str)]
    skipped = [result for result in results if isinstance(result, str)]
    if not kept:
        raise UserError(f"none of the {len(pictures)} pictures can be read: {skipped[0]}")
    if skipped:
        more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        warnings.warn(
            f"skipped {len(skipped)} unreadable pictures: {'; '.join(skipped[:NAMED])}{more}",
            stacklevel=2,
        )
    images = np.stack([result for result in results if not isinstance(result, str)])
    return Decoded(images, np.array(kept, dtype=np.int64), skipped)
