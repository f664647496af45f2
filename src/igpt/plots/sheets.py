"""Sheets of pictures by Pillow, pixel for pixel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from igpt.config import UserError
from igpt.disk import require_file, require_folder, require_new_folder, write_atomically
from igpt.types import Pixels

GUTTER = 4  # pixels between the pictures of a sheet
MARGIN = 12
TITLE = 20  # height of the titles of columns
# The background is a light grey, so that a white picture has an edge.
PAPER, INK = (238, 239, 241), (70, 70, 70)
HIDDEN = ((205, 208, 213), (228, 230, 233))  # a chequerboard, as programs show transparency
CELL = 96  # pixels that a picture is enlarged to at least, by a whole factor


# Those of Pillow's formats that hold colour pictures as they are, and the longest side they take.
LONGEST = {
    **dict.fromkeys(("PNG", "TIFF", "BMP"), (1 << 31) - 1),
    **{"JPEG": 65500, "GIF": 65535, "AVIF": 65535, "WEBP": 16383},
}


def _picture_format(path: Path) -> str:
    """The format for writing a picture to `path`; UserError for a suffix of none in LONGEST."""
    file_format = Image.registered_extensions().get(path.suffix.lower())
    if file_format not in LONGEST:
        raise UserError(f"cannot write a picture as '{path.name}': expected a name like sheet.png")
    return file_format


def require_picture(path: Path) -> None:
    """UserError unless `save_image` can write there; call it before the picture is made."""
    _picture_format(path)
    require_file(path)


def save_image(image: Image.Image, path: Path) -> Path:
    """Write a picture whole or not at all, in the format of its suffix; where it is then.

    One that is too large for this format becomes a .png beside `path`, with a warning. Raises
    UserError for a suffix that is no picture format, and when it cannot be written.
    """
    file_format = _picture_format(path)
    if max(image.size) > LONGEST[file_format]:
        path, file_format = path.with_name(f"{path.name}.png"), "PNG"
        warnings.warn(f"{image.width}x{image.height} pixels: written as {path}", stacklevel=2)
    write_atomically(path, lambda temporary: image.save(temporary, format=file_format))
    return path


def require_pictures(path: Path) -> None:
    """UserError unless `save_pictures` can write there; call it before they are made."""
    if not path.suffix:
        require_new_folder(path)
        require_folder(path)
    elif path.suffix.lower() == ".npz":
        require_file(path)
    else:
        require_picture(path)


def save_pictures(
    batches: Iterable[Pixels],
    names: Sequence[str],
    path: Path,
    sheet: Callable[[Pixels], Image.Image],
) -> Path:
    """Save pictures that come in batches [b, H, W, 3] to `path`; where they are then.

    A path without a suffix is a folder of .png files called `names`, each written as it comes, so
    that none is lost to an interruption; .npz gets the array `images`; any other gets the `sheet`.
    """
    if not path.suffix:
        for name, pixels in zip(names, chain.from_iterable(batches), strict=True):
            save_image(Image.fromarray(pixels), path / f"{name}.png")
        return path
    images = np.concatenate(list(batches))
    if path.suffix.lower() != ".npz":
        return save_image(sheet(images), path)
    write_atomically(path, lambda temporary: _save_array(temporary, images))
    return path


def _save_array(path: Path, images: Pixels) -> None:
    with path.open("wb") as file:  # numpy would add .npz to the name
        np.savez_compressed(file, images=images)


def picture_sheet(images: Pixels) -> Image.Image:
    """Pictures [N, H, W, 3] in rows, enlarged without blur."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return grid(rows)


def completion_sheet(
    given: npt.NDArray[np.bool_], completions: Pixels, originals: Pixels
) -> Image.Image:
    """A row for each picture: what was given, its completions, the original.

    Args:
        given: [H, W], True where the picture was given.
        completions: [N * n, H, W, 3], picture after picture.
        originals: [N, H, W, 3]
    """
    board = np.indices(given.shape).sum(axis=0) % 2  # [H, W]
    shown = np.where(given[..., None], originals, np.array(HIDDEN, np.uint8)[board])
    variants = completions.reshape(len(originals), -1, *originals.shape[1:])
    rows = [
        np.concatenate((s[None], v, o[None]))
        for s, v, o in zip(shown, variants, originals, strict=True)
    ]
    n = variants.shape[1]
    return grid(rows, {0: "given", 1: "completions" if n > 1 else "completion", n + 1: "original"})


def grid(rows: Sequence[Pixels], titles: Mapping[int, str] | None = None) -> Image.Image:
    """Rows of pictures on one sheet; `titles` are drawn above columns, by their number."""
    height, width = rows[0].shape[1:3]
    scale = max(1, -(-CELL // max(height, width)))
    step_x, step_y = width * scale + GUTTER, height * scale + GUTTER
    top = MARGIN + (TITLE if titles else 0)
    columns = max(len(row) for row in rows)
    size = (2 * MARGIN + columns * step_x - GUTTER, top + MARGIN + len(rows) * step_y - GUTTER)
    sheet = Image.new("RGB", size, PAPER)
    for r, row in enumerate(rows):
        for c, pixels in enumerate(row):
            picture = Image.fromarray(pixels).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (MARGIN + c * step_x, top + r * step_y))
    pen = ImageDraw.Draw(sheet)
    for column, title in (titles or {}).items():
        font = ImageFont.load_default(size=14)
        pen.text((MARGIN + column * step_x, MARGIN - 2), title, fill=INK, font=font)
    return sheet


def palette_sheet(colors: Pixels) -> Image.Image:
    """Colours uint8 [K, 3] as swatches, in the order of their tokens."""
    columns = int(np.ceil(np.sqrt(2 * len(colors))))
    side = max(8, min(36, 640 // columns))
    rows = -(-len(colors) // columns)
    sheet = Image.new("RGB", (2 * MARGIN + columns * side, 2 * MARGIN + rows * side), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, color in enumerate(colors):
        x, y = MARGIN + i % columns * side, MARGIN + i // columns * side
        pen.rectangle((x, y, x + side - 2, y + side - 2), fill=tuple(int(v) for v in color))
    return sheet
