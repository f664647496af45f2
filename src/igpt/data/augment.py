"""Training augmentations.

Flip and pad-crop only move pixels, so they commute with the palette: the set is encoded once and
its tokens are moved. ImageNet's random crops make new colours, so they act on pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from igpt.data.decode import CROP, FILTER, Transform, resized, resized_crop
from igpt.types import Pixels

# How a picture is shown at one step: picture, size and random generator -> [size, size, 3].
View = Callable[[Image.Image, int, np.random.Generator], Pixels]

PAD = 4  # pixels of reflection on each side (paper, section 3.1, CIFAR)
SHORT_SIDE = (256, 384)  # range of the short side before the crop (paper, section 3.1, ImageNet)


def move_tokens(
    tokens: npt.NDArray[Any], size: int, augmentation: str, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Augment raster tokens [B, size*size] by moving them, as `move_pixels` does."""
    return move_pixels(tokens.reshape(-1, size, size), augmentation, rng).reshape(tokens.shape)


def move_pixels(
    images: npt.NDArray[Any], augmentation: str, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Augment pictures [B, S, S] or [B, S, S, C] by moving pixels: `none`, `flip` or `cifar`.

    flip: half of the pictures mirrored. cifar: reflect-pad 4, random crop of the picture or of its
    mirror image. Raises ValueError for any other augmentation: it does more than move pixels.
    """
    if augmentation not in ("none", "flip", "cifar"):
        raise ValueError(f"'{augmentation}' cannot be done by moving pixels")
    if augmentation == "none":
        return images
    batch, size = images.shape[:2]
    mirrored = rng.random(batch) < 0.5
    moved = images.copy()
    moved[mirrored] = images[mirrored, :, ::-1]
    if augmentation == "cifar":
        sides = ((0, 0), (PAD, PAD), (PAD, PAD), *[(0, 0)] * (images.ndim - 3))
        padded = np.pad(moved, sides, mode="reflect")
        top, left = rng.integers(0, 2 * PAD + 1, (2, batch))
        rows = top[:, None] + np.arange(size)  # [B, S]
        columns = left[:, None] + np.arange(size)
        moved = padded[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def imagenet_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Pixels:
    """A random crop as the paper takes it (section 3.1): uint8 [size, size, 3]."""
    side = int(rng.integers(SHORT_SIDE[0], SHORT_SIDE[1] + 1))
    width, height = resized(image, side)
    left = int(rng.integers(0, width - CROP + 1))
    top = int(rng.integers(0, height - CROP + 1))
    crop = resized_crop(image, side, left, top, CROP)
    return np.asarray(crop.resize((size, size), FILTER))


def augmented_view(augmentation: str, transform: Transform) -> View:
    """Random crops for `imagenet`; else what `transform` makes of a picture, its pixels moved."""
    if augmentation == "imagenet":
        return imagenet_crop

    def moved(image: Image.Image, size: int, rng: np.random.Generator) -> Pixels:
        pixels: Pixels = move_pixels(transform(image, size)[None], augmentation, rng)[0]
        return pixels

    return moved
