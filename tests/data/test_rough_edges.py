"""What real folders, files and processes do to a loader: the cases that once went wrong."""

from __future__ import annotations

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from conftest import picture_bytes, write_pictures
from igpt.config import DataConfig, UserError
from igpt.data.augment import imagenet_crop, move_tokens
from igpt.data.decode import decode_all, to_rgb
from igpt.data.loader import PictureLoader, TokenLoader
from igpt.data.pictures import Pictures, Source, UnreadablePicture, open_files
from igpt.data.shards import open_streams
from igpt.data.sources import open_source
from igpt.data.splits import training_splits
from igpt.disk import write_csv
from igpt.order import Codec
from igpt.palette import Palette
from igpt.rng import numpy_rng

GREYS = Palette(np.linspace(-1, 1, 256, dtype=np.float32)[:, None].repeat(3, 1))


def save_rows(folder: Path, **columns: list[object] | np.ndarray) -> None:
    """A data set of one picture a row and other columns, in splits `train` and `test` alike."""
    n = len(next(iter(columns.values())))
    rows = {"image": [{"bytes": picture_bytes(i), "path": None} for i in range(n)], **columns}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    halves = {"train": dataset.select(range(n // 2)), "test": dataset.select(range(n // 2, n))}
    datasets.DatasetDict(halves).save_to_disk(str(folder))


# --- names ----------------------------------------------------------------------------------------


ODD, SHOWN = os.fsdecode(b"\xff"), "\\udcff"  # a file's name that is no UTF-8, and its text


def test_names_that_are_no_text_are_made_text(tmp_path: Path) -> None:
    write_pictures(tmp_path / "flat", f"{ODD}.png")
    write_pictures(tmp_path / f"classes{ODD}", f"{ODD}/1.png", "a/2.png")
    np.savez(
        tmp_path / f"{ODD}.npz", images=np.zeros((3, 4, 4), np.uint8), x_test=np.eye(3, dtype=int)
    )
    pictures = [
        open_files([tmp_path / "flat"]),
        open_source(str(tmp_path / "flat")).split("train"),
        classes := open_source(str(tmp_path / f"classes{ODD}")).split("train"),
        *(open_source(str(tmp_path / f"{ODD}.npz")).split(name) for name in ("train", "test")),
    ]
    rows = [{"name": part.name(i)} for part in pictures for i in range(len(part))]
    assert all(SHOWN in row["name"] for row in rows)
    assert classes.class_names == ("\\udcff", "a")
    write_csv(tmp_path / "names.csv", rows)
    lines = (tmp_path / "names.csv").read_text("utf-8").splitlines()
    assert lines == ["name", *(row["name"] for row in rows)]


def test_a_stream_names_what_is_no_text(tmp_path: Path) -> None:
    write_pictures(tmp_path, f"{ODD}.png")
    stream, _ = open_streams(DataConfig(source=str(tmp_path), streaming=True))
    (row,) = stream.read().rows(2)
    assert row.name.endswith(f"{SHOWN}.png")


def test_a_broken_data_file_is_told_and_not_called_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"(?i)parquet"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("error", [ConnectionError("no network"), AssertionError()])
def test_a_data_set_that_cannot_be_fetched_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_spec: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"no data set somebody/pictures: \w") as caught:
        open_source("somebody/pictures")
    assert "\n" not in str(caught.value)


# --- columns and labels --------------------------------------------------------------------------


def test_whole_numbers_stay_the_labels_they_are(tmp_path: Path) -> None:
    save_rows(tmp_path, label=[0, 10, 2, 9, 11, 1])
    labels = open_source(str(tmp_path)).split("train").labels
    assert labels is not None
    assert labels.tolist() == [0, 10, 2]


def test_names_mean_the_same_class_in_every_split(tmp_path: Path) -> None:
    save_rows(tmp_path, label=["cat", "emu", "cat", "dog", "emu", None])
    source = open_source(str(tmp_path))
    train, test = source.split("train"), source.split("test")
    assert train.class_names == test.class_names == ("cat", "dog", "emu")
    assert train.labels is not None
    assert test.labels is not None
    assert train.labels.tolist() == [0, 2, 0]
    assert test.labels.tolist() == [1, 2, -1]


def test_an_index_means_the_same_class_where_splits_count_theirs_differently(
    tmp_path: Path,
) -> None:
    orders = {"train": ["cat", "dog", "emu"], "test": ["emu", "fox", "cat"]}
    rows = {"image": [{"bytes": picture_bytes(i), "path": None} for i in range(3)]}
    splits = {
        split: datasets.Dataset.from_dict(
            {**rows, "label": [0, 2, 1]},
            datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
            ),
        )
        for split, names in orders.items()
    }
    for split, part in splits.items():
        part.save_to_disk(str(tmp_path / split))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = open_source(str(tmp_path))
    for split, labels in (("train", [0, 2, 1]), ("test", [2, 0, 3])):
        pictures = source.split(split)
        assert pictures.class_names == ("cat", "dog", "emu", "fox")
        assert pictures.labels is not None
        assert pictures.labels.tolist() == labels


def test_whole_numbers_of_which_some_are_missing_are_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path, *(f"{i}.png" for i in range(4)))
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,2\n1.png,\n2.png,0\n3.png,\n")
    for column in (None, "label"):
        train = open_source(str(tmp_path), label_column=column).split("train")
        assert train.labels is not None
        assert train.labels.tolist() == [1, -1, 0, -1]
        assert train.class_names == ("0", "2")


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    write_pictures(tmp_path, *(f"{i}/1.png" for i in (0, 10, 2)))
    assert open_source(str(tmp_path)).split("train").class_names == ("0", "2", "10")
    save_rows(tmp_path / "rows", label=["10", "2", "0", "2"])
    assert open_source(str(tmp_path / "rows")).split("train").class_names == ("0", "2", "10")


def test_a_column_that_cannot_be_what_it_is_called_is_refused(tmp_path: Path) -> None:
    save_rows(tmp_path, weight=[0.5, 1.5])
    with pytest.raises(UserError, match="whole numbers or names, not float64"):
        open_source(str(tmp_path), label_column="weight").split("train")
    with pytest.raises(UserError, match="'weight' does not hold pictures"):
        open_source(str(tmp_path), image_column="weight").split("train")
    with pytest.raises(UserError, match="no column 'kind'"):
        open_source(str(tmp_path), label_column="kind").split("train")
    save_rows(tmp_path / "large", label=np.array([2**63, 1], dtype=np.uint64))
    with pytest.raises(UserError, match="labels in 'label' are too large for classes"):
        open_source(str(tmp_path / "large")).split("train")


@pytest.mark.parametrize("values", [[0.5, 1.5], [[1, 2], [3]], [None, None], [[[1]], [[2]]]])
def test_a_column_that_is_only_called_labels_is_passed_over_until_it_is_named(
    tmp_path: Path, values: list[object]
) -> None:
    save_rows(tmp_path / "alone", labels=values)
    source = open_source(str(tmp_path / "alone"))
    assert source.split("train").labels is None
    assert source.split("test").labels is None
    with pytest.raises(UserError, match="labels in 'labels' must be whole numbers or names"):
        open_source(str(tmp_path / "alone"), label_column="labels").split("train")
    save_rows(tmp_path / "beside", label=values, cls=["cat", "dog"])
    assert open_source(str(tmp_path / "beside")).split("train").class_names == ("cat", "dog")


def test_a_row_without_a_picture_is_unreadable(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture_bytes(0), "path": None}, None], "label": [0, 1]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.save_to_disk(str(tmp_path))
    pictures = open_source(str(tmp_path)).split("train")
    with pytest.raises(UnreadablePicture, match=r"train\[1\]"):
        pictures.image(1)
    with pytest.warns(UserWarning, match="skipped 1"):
        assert decode_all(pictures, 4).kept.tolist() == [0]


# --- arrays --------------------------------------------------------------------------------------


def test_labels_in_a_column_of_an_npz_are_taken(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([[2], [0], [1]]))
    labels = open_source(str(tmp_path / "a.npz")).split("train").labels
    assert labels is not None
    assert labels.tolist() == [2, 0, 1]


def test_an_archive_called_npy_is_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4, 4), np.uint8))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    assert len(open_source(str(tmp_path / "a.npy")).split("train")) == 3


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_truncated_file_of_arrays_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    if suffix == ".npy":
        np.save(path, images)
    else:
        np.savez(path, x=images)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole"):
        open_source(str(path))


def test_selected_arrays_decode_to_themselves_with_and_without_the_short_way() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    pictures = Pictures(6, lambda i: Image.fromarray(images[i]), str, array=images)
    chosen = np.array([4, 1, 1])
    short = decode_all(pictures.select(chosen), 8).images
    long = decode_all(Pictures(6, pictures.open_image, str).select(chosen), 8).images
    assert np.array_equal(short, images[chosen])
    assert np.array_equal(long, images[chosen])


# --- splits --------------------------------------------------------------------------------------


def test_a_validation_split_that_is_for_testing_is_not_validated_on(tmp_path: Path) -> None:
    """ImageNet is tested on its validation split, and validated on a part of train."""
    write_pictures(tmp_path, *(f"train/{i}.png" for i in range(10)), "validation/1.png")
    opened = open_source(str(tmp_path))

    def forbidden() -> Pictures:
        raise AssertionError("the test split was opened")

    source = Source(opened.name, {**opened.open_split, "validation": forbidden})
    train, held_out = training_splits(source, DataConfig(test_split="validation"), seed=0)
    assert (len(train), len(held_out)) == (9, 1)


def test_a_few_pictures_are_enough_to_hold_one_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png", "2.png", "3.png")
    source = open_source(str(tmp_path))
    assert [len(part) for part in training_splits(source, DataConfig(), seed=0)] == [2, 1]
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").unlink()
    with pytest.raises(UserError, match="too few"):
        training_splits(open_source(str(tmp_path)), DataConfig(), seed=0)


# --- decoding ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Pillow has much to say about them
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_damaged_picture_is_read_or_unreadable_and_nothing_else(image_format: str) -> None:
    whole, rng = picture_bytes(0, (24, 20), image_format), np.random.default_rng(0)
    damaged = [whole[: rng.integers(len(whole))] for _ in range(40)]
    for _ in range(60):
        changed = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), 4):
            changed[place] = rng.integers(256)
        damaged.append(bytes(changed))
    damaged.append(whole)
    pictures = Pictures(len(damaged), lambda i: Image.open(io.BytesIO(damaged[i])), str)
    decoded = decode_all(pictures, 8)
    assert decoded.kept[-1] == len(damaged) - 1
    assert decoded.skipped
    assert len(decoded.kept) + len(decoded.skipped) == len(damaged)


def test_a_picture_whose_exif_is_broken_is_skipped_and_named() -> None:
    images = [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))]
    images[1].info["exif"] = b"Exif\0\0 no header"
    pictures = Pictures(2, images.__getitem__, ["fine", "broken"].__getitem__)
    with pytest.warns(UserWarning, match="broken"):
        assert decode_all(pictures, 4).kept.tolist() == [0]


def test_cmyk_and_floats_become_rgb() -> None:
    assert to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    for white in (1.0, 255.0, 65535.0):
        values = np.array([[0, white / 2, white, np.nan]], np.float32)
        grey = np.asarray(to_rgb(Image.fromarray(values)))[0, :3, 0]
        assert grey.tolist() == [0, 128, 255]


# --- batches -------------------------------------------------------------------------------------


def token_loader() -> TokenLoader:
    tokens = np.random.default_rng(0).integers(0, 9, (10, 36)).astype(np.uint16)
    return TokenLoader(tokens, np.arange(10), Codec(GREYS, "raster", 6), 7, 3, "cifar")


def crop_loader(folder: Path) -> PictureLoader:
    write_pictures(folder, *(f"{i}.png" for i in range(5)))
    return PictureLoader(open_files([folder]), Codec(GREYS, "raster", 4), 7, 0, imagenet_crop)


def test_a_share_may_be_every_other_row(tmp_path: Path) -> None:
    for loader in (token_loader(), crop_loader(tmp_path)):
        assert loader.batch(4, range(1, 7, 2)).tokens.equal(loader.batch(4, range(7)).tokens[1::2])


def test_an_empty_share_is_not_the_whole_batch() -> None:
    assert token_loader().batch(4, range(0)).tokens.shape == (0, 36)


def test_an_unreadable_picture_is_warned_about_once(tmp_path: Path) -> None:
    loader = crop_loader(tmp_path)
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped an unreadable picture") as caught:
        assert [loader.batch(step, range(7)).step for step in range(4)] == [0, 1, 2, 3]
    assert len(caught) == 1
    assert "3.png" in str(caught[0].message)


def test_new_colours_cannot_be_made_by_moving_tokens() -> None:
    with pytest.raises(ValueError, match="imagenet"):
        move_tokens(np.zeros((2, 36), np.uint16), 6, "imagenet", numpy_rng(0))
