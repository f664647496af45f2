"""Figures show what they were given, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt.config import UserError
from igpt.plots import (
    CELL,
    GUTTER,
    HIDDEN,
    MARGIN,
    completion_sheet,
    loss_figure,
    palette_sheet,
    picture_sheet,
    save_image,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def cell(sheet: Image.Image, row: int, column: int, top: int = MARGIN) -> np.ndarray:
    """The picture at a place of a sheet of 8x8 pictures, reduced to its own size."""
    x, y = MARGIN + column * (CELL + GUTTER), top + row * (CELL + GUTTER)
    return np.asarray(sheet)[y : y + CELL : CELL // 8, x : x + CELL : CELL // 8]


def test_a_sheet_holds_every_picture_enlarged_without_blur() -> None:
    sheet = picture_sheet(IMAGES, columns=3)
    for i, image in enumerate(IMAGES):
        assert np.array_equal(cell(sheet, i // 3, i % 3), image)
    assert (cell(sheet, 1, 2) == 255).all()  # the last row is not full


def test_a_completion_sheet_has_the_given_part_the_completions_and_the_original() -> None:
    known = np.zeros((8, 8), bool)
    known[:3] = True
    completions = RNG.integers(0, 256, (5, 2, 8, 8, 3), dtype=np.uint8)
    sheet = completion_sheet(known, completions, IMAGES)
    top = MARGIN + 20
    for i in range(5):
        given = cell(sheet, i, 0, top)
        assert np.array_equal(given[:3], IMAGES[i, :3])
        assert (given[3:] == HIDDEN).all()
        assert np.array_equal(cell(sheet, i, 1, top), completions[i, 0])
        assert np.array_equal(cell(sheet, i, 2, top), completions[i, 1])
        assert np.array_equal(cell(sheet, i, 3, top), IMAGES[i])


def test_a_palette_sheet_has_every_colour() -> None:
    colors = np.arange(30, 39).reshape(3, 3)
    sheet = np.asarray(palette_sheet((colors / 127.5 - 1).astype(np.float32)))
    for color in colors:
        assert (sheet == color).all(-1).sum() > 50


def test_a_loss_figure_is_drawn_for_any_rows(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 1 / i} for i in range(1, 30)] + [{"step": 29, "val_loss": 0.5}]
    sizes = []
    for name, part, levels in (("all", rows, {"a level": 0.7}), ("none", [], None)):
        loss_figure(part, tmp_path / f"{name}.png", levels)
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes.append(len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)))
    assert sizes[0] > sizes[1] > 1


def test_saving_makes_folders_and_refuses_what_is_no_picture_format(tmp_path: Path) -> None:
    image = Image.fromarray(IMAGES[0])
    save_image(image, tmp_path / "new" / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), IMAGES[0])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
    for name in ("a.xyz", "a", "a.npy"):
        with pytest.raises(UserError, match=r"sheet\.png"):
            save_image(image, tmp_path / name)
