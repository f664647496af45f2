"""Every kind of picture, as the model takes it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import picture_bytes
from igpt.config import UserError
from igpt.data import decode
from igpt.data.augment import imagenet_crop
from igpt.data.decode import decode_all, encode_all, fit_square, imagenet_centre, read_rgb, to_rgb
from igpt.data.pictures import Pictures, UnreadablePicture, open_files
from igpt.order import Codec, Encoded
from igpt.palette import Palette
from igpt.types import Pixels


def test_imagenets_crops_of_pictures_that_were_made_small_before_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"pictures of 32 pixels are enlarged"):
        imagenet_centre(Image.new("RGB", (32, 32)), 32)


def test_strips_are_warned_of_and_other_shapes_are_not() -> None:
    for sides in ((41, 10), (10, 41)):
        with pytest.warns(UserWarning, match=r"more than 4 times as long as wide are cut"):
            fit_square(Image.new("RGB", sides), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_square(Image.new("RGB", (40, 10)), 8)


def colour(image: Image.Image) -> list[int]:
    return list(to_rgb(image).getpixel((0, 0)))


@pytest.mark.parametrize("shape", [(0, 0), (5, 0, 3)])
def test_a_picture_without_pixels_is_a_mistake(shape: tuple[int, ...]) -> None:
    empty = Image.fromarray(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="this one is 0x"):
        fit_square(to_rgb(empty), 4)


def test_grey_and_one_bit_pictures_become_rgb() -> None:
    assert colour(Image.new("L", (2, 2), 77)) == [77] * 3
    assert colour(Image.new("1", (2, 2), 1)) == [255] * 3


def test_alpha_is_laid_over_white() -> None:
    assert colour(Image.new("RGBA", (2, 2), (200, 0, 0, 0))) == [255] * 3
    assert colour(Image.new("RGBA", (2, 2), (200, 0, 0, 255))) == [200, 0, 0]
    assert colour(Image.new("RGBA", (2, 2), (0, 0, 0, 51))) == [204] * 3
    assert colour(Image.new("LA", (2, 2), (10, 0))) == [255] * 3


def test_palette_pictures_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    assert colour(image) == [10, 20, 30]
    image.save(tmp_path / "clear.png", transparency=1)
    assert colour(Image.open(tmp_path / "clear.png")) == [255] * 3


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    rgb = np.asarray(to_rgb(Image.open(tmp_path / "deep.png")))
    assert rgb[0, :, 0].tolist() == [0, 1, 128, 255]
    Image.fromarray(values // 16).save(tmp_path / "microscope.png")
    with pytest.warns(UserWarning, match="scale pictures of 12 bits"):
        to_rgb(Image.open(tmp_path / "microscope.png"))
    with pytest.warns(UserWarning, match="floats has no value above a sixteenth of 65,535"):
        to_rgb(Image.fromarray(np.full((2, 2), 400, np.float32)))


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, 90_000.0], [-np.inf, -5.0]])
def test_values_that_do_not_tell_black_and_white_are_not_guessed(
    values: list[float], tmp_path: Path
) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(UnreadablePicture, match="do not tell what is black and white"):
        read_rgb(open_files([tmp_path / "floats.tiff"]), 0)


def test_what_is_not_finite_is_black_or_white_and_the_rest_as_it_was() -> None:
    floats = Image.fromarray(np.array([[np.nan, np.inf, 0.5, -1e-6]], np.float32))
    assert np.asarray(to_rgb(floats))[0, :, 0].tolist() == [0, 255, 128, 0]
    sharpened = Image.fromarray(np.array([[0, 0.5, 1.03]], np.float32))  # beside white, not far
    assert np.asarray(to_rgb(sharpened))[0, :, 0].tolist() == [0, 128, 255]
    nothing = Image.fromarray(np.full((1, 2), np.nan, np.float32))
    assert np.asarray(to_rgb(nothing))[0, :, 0].tolist() == [0, 0]


def test_a_transparent_value_of_sixteen_bits_is_white(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "clear.png", transparency=257)
    rgb = np.asarray(to_rgb(Image.open(tmp_path / "clear.png")))
    assert rgb[0, :, 0].tolist() == [0, 255, 255]


def test_the_pages_of_a_tiff_that_are_not_read_are_told_of(tmp_path: Path) -> None:
    pages = [Image.new("L", (4, 4), grey) for grey in (10, 200)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="several pages, of which the first is taken"):
        rgb = to_rgb(Image.open(tmp_path / "stack.tif"))
    assert np.asarray(rgb).max() == 10


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = to_rgb(Image.open(tmp_path / "turned.png"))
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.filterwarnings("ignore:pictures")
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60), size=st.integers(1, 40))
def test_any_shape_becomes_a_square_of_the_size(width: int, height: int, size: int) -> None:
    assert fit_square(Image.new("RGB", (width, height)), size).shape == (size, size, 3)


def test_a_picture_of_the_size_is_not_touched_and_a_wide_one_is_cropped_in_the_middle() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 14, 3), dtype=np.uint8)
    assert np.array_equal(fit_square(Image.fromarray(pixels[:, :8]), 8), pixels[:, :8])
    assert np.array_equal(fit_square(Image.fromarray(pixels), 8), pixels[:, 3:11])


def resized_whole(image: Image.Image, side: int) -> Image.Image:
    """The picture with its short side `side` pixels long, by definition."""
    short = min(image.size)
    size = [max(side, round(length * side / short)) for length in image.size]
    return image if short == side else image.resize((size[0], size[1]), decode.FILTER)


def cropped(image: Image.Image, left: int, top: int, side: int) -> Pixels:
    return np.asarray(image.crop((left, top, left + side, top + side)))


def middle(image: Image.Image, side: int) -> Pixels:
    whole = resized_whole(image, side)
    return cropped(whole, (whole.width - side) // 2, (whole.height - side) // 2, side)


def noise(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.filterwarnings("ignore:pictures")
@settings(max_examples=60, deadline=None)
@given(
    short=st.integers(1, 40),
    ratio=st.floats(1, decode.LONG),
    tall=st.booleans(),
    size=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_pictures_that_are_not_very_long_are_resized_whole_to_the_bit(
    short: int, ratio: float, tall: bool, size: int, seed: int
) -> None:
    sides = (short, int(short * ratio))
    image = noise(seed, *sides[:: -1 if tall else 1])
    assert np.array_equal(fit_square(image, size), middle(image, size))


@pytest.mark.filterwarnings("ignore:pictures")
@pytest.mark.parametrize(("width", "height"), [(300, 250), (500, 375), (40, 90), (7, 190)])
def test_imagenets_crops_are_those_of_the_picture_resized_whole(width: int, height: int) -> None:
    image = noise(0, width, height)
    whole = Image.fromarray(middle(image, 224)).resize((32, 32), decode.FILTER)
    assert np.array_equal(imagenet_centre(image, 32), np.asarray(whole))
    rng = np.random.default_rng(1)
    whole = resized_whole(image, int(rng.integers(256, 385)))
    left, top = (int(rng.integers(0, length - 224 + 1)) for length in whole.size)
    crop = Image.fromarray(cropped(whole, left, top, 224)).resize((32, 32), decode.FILTER)
    ours = imagenet_crop(image, 32, np.random.default_rng(1))
    assert np.array_equal(ours, np.asarray(crop))


@pytest.mark.filterwarnings("ignore:pictures")
@pytest.mark.parametrize("sides", [(3, 120), (3, 500), (20, 900), (8, 999)])
def test_of_a_very_long_picture_the_same_is_seen(sides: tuple[int, int]) -> None:
    for image in (noise(0, *sides), noise(1, *sides[::-1])):
        for size in (1, 8, 13):
            difference = fit_square(image, size).astype(int) - middle(image, size)
            assert np.abs(difference).max() <= 1  # of rounding
        assert np.array_equal(fit_square(image, min(sides)), middle(image, min(sides)))


@pytest.mark.filterwarnings("ignore:pictures")
def test_a_very_long_picture_takes_no_more_memory_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *options: Any) -> Image.Image:
        assert size[0] * size[1] < 10**6
        return resize(image, size, *options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    for image in (noise(0, 2, 20_000), noise(0, 20_000, 2)):
        fit_square(image, 192)
        imagenet_centre(image, 32)
        for seed in range(3):
            imagenet_crop(image, 32, np.random.default_rng(seed))


def test_unreadable_pictures_are_skipped_named_and_counted(tmp_path: Path) -> None:
    good = picture_bytes(0)
    (tmp_path / "a.png").write_bytes(good)
    (tmp_path / "b-truncated.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "c-empty.png").write_bytes(b"")
    (tmp_path / "d-text.jpg").write_text("not a picture")
    (tmp_path / "e.png").write_bytes(picture_bytes(1))
    with pytest.warns(UserWarning, match="skipped 3 unreadable.*b-truncated.*c-empty.*d-text"):
        decoded = decode_all(open_files([tmp_path]), 5)
    assert decoded.images.shape == (2, 5, 5, 3)
    assert decoded.kept.tolist() == [0, 4]
    assert len(decoded.skipped) == 3


def test_a_folder_with_none_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 pictures can be read"):
        decode_all(open_files([tmp_path]), 5)


def test_encoding_a_part_at_a_time_is_encoding_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(11):
        broken = i == 1 or 4 <= i < 8  # the second part holds no readable picture
        (tmp_path / f"{i:02}.png").write_bytes(b"" if broken else picture_bytes(i))
    pictures = open_files([tmp_path])
    codec = Codec(Palette(np.eye(3, dtype=np.float32)), "raster", 4)
    lengths, at_once = [], decode.decode_readable

    def spy(part: Pictures, *args: object) -> object:
        lengths.append(len(part))
        return at_once(part, *args)  # type: ignore[arg-type]

    with pytest.warns(UserWarning, match="skipped 5 unreadable"):
        whole = decode_all(pictures, 4)
    monkeypatch.setattr(decode, "PART", 4)
    monkeypatch.setattr(decode, "decode_readable", spy)
    with pytest.warns(UserWarning, match="skipped 5 unreadable"):
        parts = encode_all(pictures, codec)
    assert lengths == [4, 4, 3]
    assert isinstance(parts.images, Encoded)
    assert np.array_equal(parts.images.tokens, codec.raster_tokens(whole.images))
    assert (parts.kept.tolist(), parts.skipped) == (whole.kept.tolist(), whole.skipped)
    with pytest.raises(UserError, match="none of the 4 pictures can be read"):
        encode_all(pictures.select(np.arange(4, 8)), codec)
