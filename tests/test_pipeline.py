"""`igpt.load`: it takes and returns what people hold."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import igpt
from igpt.config import UserError
from igpt.data.decode import decode_all, fit_square, imagenet_centre
from igpt.data.pictures import open_files
from igpt.data.sources import open_source
from igpt.order import Codec
from igpt.palette import Palette
from igpt.run_data import load_named
from igpt.score import score
from test_model import AR, BERT, random_model

GREYS = Palette(np.linspace(-1, 1, 11, dtype=np.float32)[:, None].repeat(3, axis=1))


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> igpt.Pipeline:
    return igpt.load(tiny_run)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return decode_all(open_source("digits").split("test"), 8).images[:3]


def test_it_has_the_parts_it_promises(pipeline: igpt.Pipeline) -> None:
    assert isinstance(pipeline.model, igpt.ImageGPT)
    assert isinstance(pipeline.palette, igpt.Palette)
    assert (pipeline.order, pipeline.image_size) == ("raster", 8)


def test_samples_are_pictures_of_the_palettes_colours(pipeline: igpt.Pipeline) -> None:
    pictures = pipeline.sample(3, seed=1)
    assert [picture.size for picture in pictures] == [(8, 8)] * 3
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    assert np.array_equal(pipeline.quantize(pixels), pixels)
    again = [np.asarray(picture) for picture in pipeline.sample(2, seed=1)]
    assert np.array_equal(np.stack(again), pixels[:2])


def test_every_form_of_picture_gives_the_same_likelihood(
    pipeline: igpt.Pipeline, digits: np.ndarray, tmp_path: Path
) -> None:
    pictures = [Image.fromarray(pixels) for pixels in digits]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    expected = pipeline.nll(digits)
    assert expected.shape == (3,)
    assert expected.dtype == np.float64
    for form in (
        pictures,
        list(digits),
        digits[..., 0],
        torch.from_numpy(digits),
        [torch.from_numpy(digits[0]), pictures[1], tmp_path / "2.png"],
        [str(tmp_path / f"{i}.png") for i in range(3)],
    ):
        np.testing.assert_allclose(pipeline.nll(form), expected, atol=1e-6)
    np.testing.assert_allclose(pipeline.nll(pictures[0]), expected[:1], atol=1e-6)
    np.testing.assert_allclose(pipeline.nll(str(tmp_path / "0.png")), expected[:1], atol=1e-6)


def test_files_are_opened_one_by_one(
    pipeline: igpt.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many photographs are more than memory holds."""
    Image.new("RGB", (20, 20)).save(tmp_path / "big.png")
    done: list[str] = []

    def opened(*_: object) -> Image.Image:
        done.append("opened")
        return Image.new("RGB", (20, 20))

    def shrunk(image: Image.Image, size: int) -> np.ndarray:
        done.append("shrunk")
        return fit_square(image, size)

    monkeypatch.setattr("igpt.data.shown.read_rgb", opened)
    monkeypatch.setattr(pipeline, "transform", shrunk)
    pipeline.nll([tmp_path / "big.png"] * 3)
    assert done == ["opened", "shrunk"] * 3


@pytest.fixture
def cropping() -> igpt.Pipeline:
    """A random model of 3x3 pixels whose pictures go through ImageNet's crop."""
    return igpt.Pipeline(random_model(AR), Codec(GREYS, "raster", 3), transform=imagenet_centre)


@pytest.mark.filterwarnings("ignore:pictures of 3 pixels are enlarged")
def test_every_form_of_picture_goes_through_the_crop(
    cropping: igpt.Pipeline, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in images]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    expected = torch.from_numpy(
        cropping.codec.encode(np.stack([imagenet_centre(picture, 3) for picture in pictures]))
    )
    assert not torch.equal(expected, torch.from_numpy(cropping.codec.encode(images)))
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for form in (images, pictures, list(images), torch.from_numpy(images), paths):
        assert torch.equal(cropping.tokens(form), expected)
    assert torch.equal(cropping.tokens(images[0]), expected[:1])


@pytest.mark.filterwarnings("ignore:pictures of 3 pixels are enlarged")
def test_what_a_command_decoded_is_not_cropped_again(
    cropping: igpt.Pipeline, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    given, expected = load_named(open_files([tmp_path]), cropping), cropping.nll(images)
    np.testing.assert_array_equal(cropping.nll(given.images), expected)
    fitted = np.stack([imagenet_centre(Image.fromarray(pixels), 3) for pixels in images])
    for form in (given.images, fitted):
        scores = score(cropping, form, given.names)
        np.testing.assert_allclose(scores.nats_per_pixel, expected, rtol=1e-6)


def test_the_likelihood_of_all_pictures_is_the_mean_of_theirs(
    pipeline: igpt.Pipeline, digits: np.ndarray
) -> None:
    total = pipeline.likelihood(digits)
    assert total.count == 3
    assert total.nats_per_pixel == pytest.approx(pipeline.nll(digits).mean(), abs=1e-6)


def test_autocast_around_a_call_does_not_change_its_pictures(pipeline: igpt.Pipeline) -> None:
    plain = pipeline.sample(2, precision="float32")
    with torch.autocast("cpu", torch.bfloat16):
        inside = pipeline.sample(2, precision="float32")
    assert all(np.array_equal(a, b) for a, b in zip(plain, inside, strict=True))


@pytest.mark.parametrize("config", [AR, BERT, replace(AR, n_classes=3)], ids=["ar", "bert", "head"])
def test_numbers_can_be_computed_in_bfloat16(config: igpt.ModelConfig) -> None:
    p = igpt.Pipeline(random_model(config), Codec(GREYS, "hilbert", 3), ("a", "b", "c"))
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 3, 3), dtype=np.uint8)
    numbers = {
        "nll": lambda precision: p.nll(images, precision=precision),
        "likelihood": lambda precision: p.likelihood(images, precision=precision).nats_per_pixel,
        "surprise": lambda precision: p.surprise(images, precision=precision),
        "features": lambda precision: p.features(images, precision=precision),
    }
    if config.n_classes:
        numbers["predict"] = lambda precision: p.predict(images, precision=precision).probabilities
    for name, compute in numbers.items():
        exact, rounded, fastest = map(compute, ("float32", "bfloat16", "auto"))
        assert 0 < np.abs(rounded - exact).max() < 0.05, name
        assert np.array_equal(fastest, exact) or np.array_equal(fastest, rounded), name
        with torch.autocast("cpu", torch.bfloat16):  # of a caller
            assert np.array_equal(compute("float32"), exact), name
        with pytest.raises(UserError, match="one of auto, float32, bfloat16, got 'int8'") as error:
            compute("int8")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5])
def test_completions_keep_the_given_part(
    pipeline: igpt.Pipeline, digits: np.ndarray, keep: float
) -> None:
    completed = pipeline.complete(digits, keep=keep, n=2)
    given = pipeline.given_mask(keep)
    assert given.sum() == round(keep * 64)
    originals = pipeline.quantize(digits)
    for variants, original in zip(completed, originals, strict=True):
        assert len(variants) == 2
        for variant in variants:
            assert np.array_equal(np.asarray(variant)[given], original[given])


@pytest.mark.parametrize(
    ("pictures", "complaint"),
    [
        ([], "no pictures"),
        (iter(()), "no pictures"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no pictures"),
        (np.zeros((8, 8), np.float32), "uint8"),
        (np.zeros((2, 3, 8, 8, 3), np.uint8), "shape"),
        (np.array(5, np.uint8), "shape"),
        (torch.tensor(5, dtype=torch.uint8), "shape"),
        (np.zeros((8, 8, 4), np.uint8), "shape"),  # one picture, and not eight grey ones
        (np.zeros((8, 8, 1), np.uint8), "shape"),
        (torch.zeros(8, 8, dtype=torch.bfloat16), "uint8 tensors"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "channels first"),
        ([1, 2], "expected pictures, got int"),
        ("missing.png", "no picture missing.png"),
        (Path(__file__).parent, "is a folder: give its pictures"),
    ],
)
def test_what_is_no_picture_is_refused(
    pipeline: igpt.Pipeline, pictures: object, complaint: str
) -> None:
    with pytest.raises(igpt.UserError, match=complaint):
        pipeline.nll(pictures)  # type: ignore[arg-type]


def test_a_picture_that_cannot_be_converted_is_named(
    pipeline: igpt.Pipeline, tmp_path: Path
) -> None:
    path = tmp_path / "broken.png"
    Image.new("RGB", (8, 8)).save(path, exif=b"Exif\0\0 no header")
    with pytest.raises(igpt.UserError, match=r"cannot read .*broken\.png: not a TIFF"):
        pipeline.nll(path)
    with Image.open(path) as image, pytest.raises(igpt.UserError, match="cannot convert"):
        pipeline.nll(image)


@pytest.mark.parametrize("keep", [-0.1, 1.0, 2.0])
def test_a_part_that_leaves_nothing_to_paint_is_refused(
    pipeline: igpt.Pipeline, digits: np.ndarray, keep: float
) -> None:
    with pytest.raises(igpt.UserError, match="keep"):
        pipeline.complete(digits, keep=keep)


def test_the_device_may_be_chosen(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.device.default_device", lambda: torch.device("meta"))
    pipeline = igpt.load(tiny_run, device="cpu")
    assert {weights.device.type for weights in pipeline.model.parameters()} == {"cpu"}
    assert len(pipeline.sample(1)) == 1
    with pytest.raises(UserError, match="no device 'gpu' here"):
        igpt.load(tiny_run, device="gpu")


def test_features_are_pooled_layers_by_the_batch(tiny_run: Path) -> None:
    p = igpt.load(tiny_run)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    every = p.features(images)
    assert every.shape == (3, 3, 16)
    assert np.allclose(p.features(images, layer=1), every[:, 1], atol=1e-6)
    assert np.allclose(p.features(images, layer="0:1"), every[:, :2].reshape(3, -1), atol=1e-6)
    assert p.features(images, layer=2, pool="grid:2").shape == (3, 4 * 16)
    with pytest.raises(UserError, match="0 to 2"):
        p.features(images, layer=3)


def test_a_model_without_head_or_probe_cannot_predict(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="no probe in"):
        igpt.load(tiny_run).predict(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("nobody/nothing", "is not in the cache, and the Hub is out of reach|cannot fetch"),
        ("nothing", "no run at nothing"),
        ("a/b/c", "no run at a/b/c"),
        ("tests/nothing", "no run at tests/nothing"),
    ],
)
def test_what_is_no_model_is_one_line(
    path: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    with pytest.raises(UserError, match=complaint) as error:
        igpt.load(path, local_files_only=True, cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_model_of_the_cache_is_found_without_a_network(tiny_run: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / "abc"
    shutil.copytree(tiny_run, snapshot)
    (tmp_path / "models--me--tiny" / "refs").mkdir()
    (tmp_path / "models--me--tiny" / "refs" / "main").write_text("abc")
    p = igpt.Pipeline.from_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True)
    p.save_pretrained(tmp_path / "again")
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    assert np.array_equal(igpt.load(tmp_path / "again").nll(pixels), p.nll(pixels))
