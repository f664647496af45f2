"""Pictures in whatever form people hold them, as arrays of a model's size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from igpt.config import UserError
from igpt.data.decode import Transform, fit_square, read_rgb, to_rgb
from igpt.data.pictures import BROKEN, UnreadablePicture, open_files
from igpt.types import Pixels

# One picture or several, as PIL images, paths of files, or uint8 arrays or tensors [H, W],
# [H, W, 3], [B, H, W] or [B, H, W, 3].
Shown = Image.Image | str | Path | Sequence[Any] | npt.NDArray[np.uint8] | torch.Tensor


def as_pixels(images: Shown, size: int, transform: Transform) -> Pixels:
    """uint8 [B, size, size, 3] of pictures in whatever form, brought to the size by `transform`.

    ImageNet's crop changes those of that size too, whatever form they have.
    """
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.size > 0:
        unchanged = images.shape[1:] == (size, size, 3) and transform is fit_square
        if unchanged:  # one by one, as below, a large set would take longer
            return images
    pixels = [transform(picture, size) for picture in _as_rgb(images)]
    if not pixels:
        raise UserError("no pictures given")
    return np.stack(pixels)


def _as_rgb(images: Shown) -> Iterator[Image.Image]:
    """Each in turn, as many files of photographs are more than memory holds."""
    if isinstance(images, Image.Image):
        yield _convert(images)
    elif isinstance(images, str | Path):
        yield _open(Path(images))
    elif isinstance(images, torch.Tensor):
        yield from _array_as_rgb(_as_array(images))
    elif isinstance(images, np.ndarray):
        yield from _array_as_rgb(images)
    elif isinstance(images, Iterable):
        for image in images:
            yield from _as_rgb(image)
    else:
        raise UserError(f"expected pictures, got {type(images).__name__}")


def _convert(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(image)
    except BROKEN as error:
        raise UserError(f"cannot convert a picture of mode {image.mode}: {error}") from error


def _open(path: Path) -> Image.Image:
    if path.is_dir():
        raise UserError(f"{path} is a folder: give its pictures")
    try:
        return read_rgb(open_files([path]), 0)
    except UnreadablePicture as error:
        raise UserError(f"cannot read {error}") from error


def _as_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """UserError for what may be one picture, channels first as PyTorch has them, or three grey."""
    if tensor.dtype != torch.uint8:
        raise UserError(f"pictures must be uint8 tensors of 0 to 255, got {tensor.dtype}")
    if tensor.ndim == 3 and len(tensor) == 3 and min(tensor.shape[1:]) > 3:
        raise UserError(
            f"a tensor {list(tensor.shape)} may be a picture with its channels first: give it as "
            "[H, W, 3] (`permute(1, 2, 0)`), and three grey pictures as a list"
        )
    return tensor.cpu().numpy()


def _array_as_rgb(array: npt.NDArray[Any]) -> Iterator[Image.Image]:
    if array.dtype != np.uint8:
        raise UserError(f"pictures must be uint8 arrays of 0 to 255, got {array.dtype}")
    colour = array.ndim >= 3 and array.shape[-1] == 3
    if array.ndim == 2 or (array.ndim == 3 and colour):
        array = array[None]
    channels = array.ndim == 3 and array.shape[2] in (1, 2, 4) and array.shape[1] > 4
    if array.ndim != 3 + colour or channels:  # of one picture; no grey ones so narrow
        raise UserError(
            "pictures must have shape [H, W], [H, W, 3], [B, H, W] or [B, H, W, 3], "
            f"got {list(array.shape)}"
        )
    if len(array) == 0:
        raise UserError("no pictures given")
    yield from (_convert(Image.fromarray(pixels)) for pixels in array)
