"""Pictures of every kind, as uint8 [S, S, 3].

Everything that a file can be (upright or not, 1 to 16 bits, palettes, transparency) ends here, so
that the rooms below know only RGB of one size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from igpt.config import UserError
from igpt.data.pictures import BROKEN, Pictures, UnreadablePicture
from igpt.order import Codec, Encoded
from igpt.types import Pixels

Transform = Callable[[Image.Image, int], Pixels]  # picture, size -> [size, size, 3]

# With antialiasing, as the Hugging Face ImageGPT processor; the paper does not state its filter.
FILTER = Image.Resampling.BILINEAR
LONG = 32  # sides of a picture's short one, beyond which it is cropped before it is resized
STRIP = 4  # times as long as wide: of such a picture the middle square shows little
CROP = 224  # ImageNet's crop before the reduction (paper, section 3.1)
DARK = 16  # a picture below this part of white is nearly black: 12 bits in 16, of microscopes
OVERSHOOT = 1.25  # times white, which sharpened or resampled floats may reach
NAMED = 3  # unreadable pictures that a warning names
# Pictures a thread takes at a time: handing out one costs almost as much as decoding a small one.
CHUNK = 64
PART = 1024  # pictures decoded at a time where not all of them are held as pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB: upright, alpha over white, 16 bits and floats scaled and not clipped.

    Raises UserError for one without pixels, which an array can hold and no file.
    """
    if 0 in image.size:
        raise UserError(f"a picture has pixels, this one is {image.width}x{image.height}")
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        warnings.warn("a TIFF has several pages, of which the first is taken", stacklevel=2)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image)
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or of floats to 8 bits; Pillow's own conversion clips at 255.

    Floats do not tell their white: it is the first of 1, 255 and 65535 that no pixel exceeds by
    more than what filters overshoot.
    Raises ValueError for values that no white explains, such as negative ones.
    """
    values = np.asarray(image, dtype=np.float64)  # [H, W]
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    whites = (1, 255, 65535) if image.mode == "F" else (65535,)
    white = next((w for w in whites if high <= w * OVERSHOOT), None)
    if white is None or low < -white / 255:  # what resampling undershoots is black
        raise ValueError(
            f"values from {low:g} to {high:g} do not tell what is black and white: scale them to "
            "0 to 65,535"
        )
    if 0 < high < white / DARK:
        warnings.warn(
            f"a picture of {'floats' if image.mode == 'F' else '16 bits'} has no value above a "
            f"sixteenth of {white:,}, which was taken for white, so it is nearly black: scale "
            "pictures of 12 bits, and floats of another white, to 65,535 first",
            stacklevel=2,
        )
    grey = np.rint(np.clip(np.nan_to_num(values / white), 0, 1) * 255).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):  # a value, of 16 bits
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def read_rgb(pictures: Pictures, i: int) -> Image.Image:
    """Picture i as RGB; UnreadablePicture when it cannot be decoded or converted."""
    image = pictures.image(i)
    try:
        return to_rgb(image)
    except BROKEN as error:  # a broken EXIF block, or colours that Pillow cannot convert
        raise UnreadablePicture(f"{pictures.name(i)}: {error}") from error


def fit_square(image: Image.Image, size: int) -> Pixels:
    """The RGB picture as [size, size, 3]: short side to `size`, centre crop.

    A picture that has the size already is not resampled.
    """
    return np.asarray(_centre(image, size))


def imagenet_centre(image: Image.Image, size: int) -> Pixels:
    """ImageNet's evaluation: short side 224, centre crop, then down to `size` (section 3.1).

    Warns of pictures that are as small as `size` already, which this only blurs.
    """
    if min(image.size) <= size:
        warnings.warn(
            f"pictures of {size} pixels are enlarged for ImageNet's crops: where they were made so "
            "small before, choose data.augmentation=flip or cifar",
            stacklevel=2,
        )
    return np.asarray(_centre(image, CROP).resize((size, size), FILTER))


def _centre(image: Image.Image, side: int) -> Image.Image:
    """The middle of the picture once its short side is `side` pixels long; warns of strips."""
    if max(image.size) > STRIP * min(image.size):
        warnings.warn(
            f"pictures more than {STRIP} times as long as wide are cut to the square in their "
            "middle: crop or pad them first to choose what is seen",
            stacklevel=2,
        )
    width, height = resized(image, side)
    return resized_crop(image, side, (width - side) // 2, (height - side) // 2, side)


def resized(image: Image.Image, side: int) -> tuple[int, int]:
    """Width and height of the picture once its short side is `side` pixels long."""
    short = min(image.size)
    width, height = (max(side, round(length * side / short)) for length in image.size)
    return width, height


def resized_crop(image: Image.Image, side: int, left: int, top: int, crop: int) -> Image.Image:
    """The picture with its short side `side` pixels long, and of that [crop, crop] at (left, top).

    What has the size already is not resampled. Of a picture that is very long only the crop is:
    the whole of one of 2x20,000 pixels would be gigabytes.
    """
    size = width, height = resized(image, side)
    if max(size) > LONG * side and size != image.size:
        x0, x1 = (x * image.width / width for x in (left, left + crop))
        y0, y1 = (y * image.height / height for y in (top, top + crop))
        return image.resize((crop, crop), FILTER, (x0, y0, x1, y1))
    whole = image if size == image.size else image.resize(size, FILTER)
    return whole if size == (crop, crop) else whole.crop((left, top, left + crop, top + crop))


@dataclass(frozen=True)
class Decoded:
    """The readable pictures of a split."""

    images: Pixels | Encoded  # [M, S, S, 3], or [M, T] where they are tokens already
    kept: npt.NDArray[np.int64]  # [M], their places in the split
    skipped: list[str]  # names of the others, and why


def evaluation_transform(augmentation: str) -> Transform:
    """How pictures are evaluated that training saw through `augmentation` (section 3.1)."""
    return imagenet_centre if augmentation == "imagenet" else fit_square


def decode_all(pictures: Pictures, size: int, transform: Transform = fit_square) -> Decoded:
    """Decode a whole split to [M, size, size, 3]; encoded pictures stay as they are.

    Unreadable pictures are left out, and named in a warning. Raises UserError when none is left.
    """
    decoded = decode_readable(pictures, size, transform)
    _require_one(decoded.skipped, len(decoded.kept))
    warn_skipped(decoded.skipped)
    return decoded


def decode_parts(
    pictures: Pictures, size: int, transform: Transform = fit_square
) -> Iterator[Decoded]:
    """A split in parts, whose `kept` are places in the whole: not all pixels are held at once.

    Unreadable pictures are met as `decode_all` does, after the last part.
    """
    count, skipped = 0, list[str]()
    for start in range(0, len(pictures), PART):
        places = np.arange(start, min(start + PART, len(pictures)))
        part = decode_readable(pictures.select(places), size, transform)
        yield replace(part, kept=places[part.kept])
        count += len(part.kept)
        skipped += part.skipped
    _require_one(skipped, count)
    warn_skipped(skipped)


def encode_all(pictures: Pictures, codec: Codec, transform: Transform = fit_square) -> Decoded:
    """Encode a whole split to tokens; unreadable pictures are met as `decode_all` does."""
    tokens = np.empty((len(pictures), codec.n_tokens), dtype=np.uint16)
    count, kept, skipped = 0, [], []
    for part in decode_parts(pictures, codec.image_size, transform):
        start, count = count, count + len(part.kept)
        tokens[start:count] = codec.raster_tokens(part.images)
        kept.append(part.kept)
        skipped += part.skipped
    return Decoded(Encoded(tokens[:count]), np.concatenate(kept), skipped)


def _require_one(skipped: list[str], kept: int) -> None:
    if skipped and not kept:
        raise UserError(f"none of the {len(skipped)} pictures can be read: {skipped[0]}")


def warn_skipped(skipped: list[str]) -> None:
    """Name unreadable pictures, if there are any."""
    if not skipped:
        return
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    warnings.warn(
        f"skipped {len(skipped)} unreadable pictures: {'; '.join(skipped[:NAMED])}{more}",
        stacklevel=3,
    )


def decode_readable(pictures: Pictures, size: int, transform: Transform = fit_square) -> Decoded:
    """`decode_all` without a word about the pictures that it leaves out."""
    count, array = len(pictures), pictures.array
    if pictures.encoded is not None:
        return Decoded(pictures.encoded, np.arange(count), [])
    if array is not None and array.shape[1:3] == (size, size) and transform is fit_square:
        grey = array.ndim == 3
        images = np.repeat(array[..., None], 3, axis=-1) if grey else array
        return Decoded(images, np.arange(count), [])
    return decode_each(pictures, size, lambda _: transform)


def decode_each(pictures: Pictures, size: int, transform_of: Callable[[int], Transform]) -> Decoded:
    """The readable pictures, each i brought to `size` by `transform_of(i)`, on many threads."""
    count = len(pictures)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    errors: dict[int, str] = {}

    def decode(places: range) -> None:
        for i in places:
            try:
                images[i] = transform_of(i)(read_rgb(pictures, i), size)
            except UnreadablePicture as error:
                errors[i] = str(error)

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, (range(count)[i : i + CHUNK] for i in range(0, count, CHUNK))))
    if not errors:
        return Decoded(images, np.arange(count), [])
    skipped = [errors[i] for i in sorted(errors)]
    kept = np.delete(np.arange(count), list(errors))
    return Decoded(images[kept], kept, skipped)
