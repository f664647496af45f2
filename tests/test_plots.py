"""Sheets show the pictures' own colours, and a file is written whole or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from conftest import is_sheet
from igpt.config import UserError
from igpt.plots.curves import confusion_figure, loss_figure, save_figure
from igpt.plots.sheets import (
    CELL,
    GUTTER,
    HIDDEN,
    MARGIN,
    PAPER,
    completion_sheet,
    palette_sheet,
    picture_sheet,
    require_pictures,
    save_image,
    save_pictures,
)

Pixels = npt.NDArray[np.uint8]
TITLES = 20  # rows of pixels that the titles of columns take


def pictures(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def cell(sheet: Image.Image, row: int, column: int, top: int = 0, side: int = CELL) -> Pixels:
    """The enlarged picture [side, side, 3] at a place of the sheet."""
    step = side + GUTTER
    x, y = MARGIN + column * step, MARGIN + top + row * step
    return np.asarray(sheet)[y : y + side, x : x + side]


def enlarged(picture: Pixels, side: int = CELL) -> Pixels:
    return picture.repeat(side // len(picture), 0).repeat(side // len(picture), 1)


def test_a_sheet_enlarges_every_picture_without_blur() -> None:
    images = pictures(5, 8, 8)
    sheet = picture_sheet(images)
    assert sheet.size == (2 * MARGIN + 3 * CELL + 2 * GUTTER, 2 * MARGIN + 2 * CELL + GUTTER)
    for i, image in enumerate(images):
        assert np.array_equal(cell(sheet, i // 3, i % 3), enlarged(image))
    assert np.all(cell(sheet, 1, 2) == PAPER)  # the place that is left over


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (4, 2), (5, 3), (9, 3)])
def test_a_sheet_is_about_square(n: int, columns: int) -> None:
    width = picture_sheet(pictures(n, 8, 8)).width
    assert width == 2 * MARGIN + columns * CELL + (columns - 1) * GUTTER


@pytest.mark.parametrize(("side", "shown"), [(28, 112), (32, 96), (128, 128)])
def test_a_picture_is_enlarged_by_whole_numbers(side: int, shown: int) -> None:
    images = pictures(1, side, side)
    assert np.array_equal(cell(picture_sheet(images), 0, 0, side=shown), enlarged(images[0], shown))


def test_a_completion_sheet_hides_what_the_model_was_not_given() -> None:
    originals, completions = pictures(2, 8, 8), pictures(2 * 3, 8, 8, seed=1)
    known = np.zeros((8, 8), dtype=bool)
    known[:3, :5] = True
    sheet = completion_sheet(known, completions, originals)
    shown = np.repeat(np.repeat(known, CELL // 8, 0), CELL // 8, 1)
    for row in range(2):
        given = cell(sheet, row, 0, TITLES)
        assert np.array_equal(given[shown], enlarged(originals[row])[shown])
        assert {tuple(color) for color in given[~shown].tolist()} == set(HIDDEN)
        for i in range(3):
            done = cell(sheet, row, 1 + i, TITLES)
            assert np.array_equal(done, enlarged(completions[3 * row + i]))
        assert np.array_equal(cell(sheet, row, 4, TITLES), enlarged(originals[row]))


@pytest.mark.parametrize("n", [1, 3])
def test_titles_stand_above_given_first_completion_and_original(n: int) -> None:
    sheet = completion_sheet(np.ones((8, 8), bool), pictures(n, 8, 8), pictures(1, 8, 8))
    head = np.asarray(sheet)[: MARGIN + TITLES - 2]
    step = CELL + GUTTER
    inked = [
        bool((head[:, MARGIN + i * step : MARGIN + i * step + 20] < 200).any())
        for i in range(n + 2)
    ]
    assert inked == [i in (0, 1, n + 1) for i in range(n + 2)]


def test_a_palette_sheet_shows_every_color_in_the_order_of_the_tokens() -> None:
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255], [255, 255, 255]], np.uint8)
    sheet = np.asarray(palette_sheet(colors))
    row = sheet[MARGIN + 4, MARGIN + 4 :: 36][:3]  # 4 swatches: 3 columns of 36 pixels
    assert np.array_equal(row, colors[:3])
    assert np.array_equal(sheet[MARGIN + 40, MARGIN + 4], colors[3])


def test_pictures_are_a_sheet_files_or_an_array_as_the_name_says(tmp_path: Path) -> None:
    images, names = pictures(3, 8, 8), ["a", "b", "c"]

    def save(name: str) -> Path:
        require_pictures(tmp_path / name)
        save_pictures([images[:2], images[2:]], names, tmp_path / name, picture_sheet)
        return tmp_path / name

    assert is_sheet(save("sheet.png"))
    with np.load(save("painted.npz")) as arrays:
        assert np.array_equal(arrays["images"], images)
    folder = save("painted")
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "c.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "b.png")), images[1])
    with pytest.raises(UserError, match="is not empty"):
        require_pictures(folder)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.webp"])
def test_a_suffix_names_the_format_and_folders_are_made(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / "folder" / name
    save_image(picture_sheet(pictures(1, 8, 8)), path)
    with Image.open(path) as image:
        assert image.format in {"PNG", "JPEG", "WEBP"}
        assert Image.registered_extensions()[path.suffix.lower()] == image.format


def test_a_sheet_too_large_for_its_format_is_a_png_beside(tmp_path: Path) -> None:
    sheet = Image.new("RGB", (2, 16384))
    with pytest.warns(UserWarning, match=r"2x16384 pixels: written as .*a\.webp\.png"):
        written = save_image(sheet, tmp_path / "a.webp")
    with Image.open(written) as image:
        assert image.size == sheet.size
    assert [*tmp_path.iterdir()] == [written]


# Icons would be shrunk, and the last is of one bit.
@pytest.mark.parametrize("name", ["a.txt", "a", "a.psd", "a.ico", "a.xbm"])
def test_a_suffix_of_no_picture_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}'.*sheet\.png"):
        save_image(picture_sheet(pictures(1, 8, 8)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sheet.png"
    save_image(picture_sheet(pictures(1, 8, 8)), path)
    before = path.read_bytes()

    def full_disk(self: Image.Image, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half a pic")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        save_image(picture_sheet(pictures(1, 8, 8, seed=1)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def figure(tmp_path: Path, *args: object) -> Pixels:
    path = tmp_path / "loss.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(loss_figure(*args), path)  # type: ignore[arg-type]
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_a_loss_figure_draws_both_curves_and_the_levels(tmp_path: Path) -> None:
    train = [{"step": step, "loss": 3 / step} for step in range(1, 50)]
    held_out = [{"step": step, "val_loss": 3.5 / step} for step in range(10, 50, 10)]
    alone = figure(tmp_path, train)
    both = figure(tmp_path, [*train, *held_out])
    levels = figure(tmp_path, [*train, *held_out], {"independent pixels": 2.0})
    blue, orange, grey = (0, 0x72, 0xB2), (0xE6, 0x9F, 0), (0x99, 0x99, 0x99)

    def holds(pixels: Pixels, color: tuple[int, int, int]) -> bool:
        return bool((pixels == color).all(axis=-1).sum() > 50)

    assert [holds(alone, c) for c in (blue, orange)] == [True, False]
    assert [holds(both, c) for c in (blue, orange, grey)] == [True, True, False]
    assert [holds(levels, c) for c in (blue, orange, grey)] == [True, True, True]


def test_a_loss_that_was_not_finite_is_left_out_of_the_figure(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 3 / step} for step in (1, 2, 4, 5)]
    null = {"step": 3, "loss": None}
    assert np.array_equal(figure(tmp_path, rows), figure(tmp_path, [*rows[:2], null, *rows[2:]]))


def test_names_of_classes_are_no_formulas(tmp_path: Path) -> None:
    names = ("$5^^$", "a_$_$")
    many = [f"class {i}" for i in range(1000)]
    save_figure(confusion_figure(np.eye(1000, dtype=np.int64), many), tmp_path / "many.png")
    assert max(Image.open(tmp_path / "many.png").size) < 3000
    save_figure(confusion_figure(np.eye(2, dtype=np.int64), names), tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").size[0] > 100
