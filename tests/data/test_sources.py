"""Where pictures may come from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import datasets
import numpy as np
import pytest
from sklearn.datasets import load_digits

from conftest import picture_bytes, write_pictures
from igpt.config import UserError
from igpt.data.decode import decode_all
from igpt.data.pictures import Source
from igpt.data.sources import is_gone, open_source, source_name
from shared_data import shared


def test_the_digits_have_fixed_splits_of_all_1797_scans() -> None:
    source = open_source("digits")
    train, test = source.split("train"), source.split("test")
    assert (len(train), len(test)) == (1500, 297)
    images = np.concatenate([decode_all(part, 8).images for part in (train, test)])
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797
    assert len(np.unique(images)) == 17
    labels = np.concatenate([train.labels, test.labels])
    theirs = load_digits()
    shown = np.rint(theirs.images * 255 / 16).astype(np.uint8)
    order, their_order = (np.lexsort(x.reshape(1797, -1).T) for x in (images[..., 0], shown))
    assert np.array_equal(images[order, :, :, 0], shown[their_order])
    assert np.array_equal(labels[order], theirs.target[their_order])
    assert train.class_names == tuple("0123456789")


def test_a_folder_whose_path_is_a_pattern_is_read_or_refused(tmp_path: Path) -> None:
    """The library would read `photos1` for it."""
    write_pictures(tmp_path / "photos1", "1.png", "2.png")
    for name in ("photos[1]", "photos?", "a::b"):
        write_pictures(tmp_path / name, "inside/1.png")
        assert len(open_source(str(tmp_path / name)).split("train")) == 1
        (tmp_path / name / "inside" / "metadata.jsonl").touch()  # the library reads this
        for spec in (tmp_path / name, tmp_path / name / "inside"):
            with pytest.raises(UserError, match="rename that folder"):
                open_source(str(spec))


@pytest.mark.parametrize("spec", ["sets", "sets/*.tar", "sets/a_{0..9}.tar", "sets/imagenet"])
def test_a_path_has_one_name_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    (tmp_path / "sets").mkdir()
    np.save(tmp_path / "sets" / "imagenet_trX.npy", np.zeros((4, 64), np.int64))
    monkeypatch.chdir(tmp_path)
    whole = source_name(spec)
    assert whole == str(tmp_path.resolve() / spec)
    monkeypatch.chdir(tmp_path / "sets")
    assert source_name(f"../{spec}") == source_name(whole) == whole


@pytest.mark.parametrize("spec", ["", "digits", "me/pictures", "s3://bucket/{0..9}.tar"])
def test_what_is_no_path_is_named_as_it_is(spec: str) -> None:
    assert source_name(spec) == spec


@pytest.mark.parametrize("suffix", ["parquet", "saved"])
def test_parquet_and_saved_data_sets_keep_the_pictures_and_labels(
    tmp_path: Path, suffix: str
) -> None:
    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {
        "photo": [{"bytes": picture_bytes(i), "path": None} for i in range(3)],
        "kind": [1, 0, 1],
    }
    dataset = datasets.Dataset.from_dict(rows, features=features)
    if suffix == "parquet":
        dataset.to_parquet(str(tmp_path / "train.parquet"))
    else:
        dataset.save_to_disk(str(tmp_path))
    pictures = open_source(str(tmp_path)).split("train")
    assert pictures.labels is not None
    assert pictures.labels.tolist() == [1, 0, 1]
    assert pictures.class_names == ("a", "b")
    assert decode_all(pictures, 7).images.shape == (3, 7, 7, 3)


def test_several_columns_of_pictures_must_be_chosen_from(tmp_path: Path) -> None:
    row = [{"bytes": picture_bytes(0), "path": None}]
    features = datasets.Features({"left": datasets.Image(), "right": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"left": row, "right": row}, features=features)
    dataset.to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(UserError, match="left, right"):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path), image_column="right").split("train")) == 1
    with pytest.raises(UserError, match="no column 'up'"):
        open_source(str(tmp_path), image_column="up")


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 4, 4, 3)])
def test_arrays_are_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    decoded = decode_all(open_source(str(tmp_path / "a.npy")).split("train"), 4).images
    assert np.array_equal(decoded[..., 0], images if len(shape) == 3 else images[..., 0])
    np.savez(tmp_path / "b.npz", x_train=images, y_train=np.arange(5), x_test=images[:2])
    source = open_source(str(tmp_path / "b.npz"))
    assert source.splits == ("train", "test")
    labels = source.split("train").labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"x": np.zeros((2, 4, 4), np.float32)}, "uint8"),
        ({"x": np.zeros((2, 4), np.float32)}, "uint8 pictures"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(3)}, "labels"),
        ({"x": np.uint8(3), "y": np.arange(3)}, r"got uint8 \[\]"),
        ({"x": np.zeros((2, 0, 0), np.uint8)}, r"got uint8 \[2, 0, 0\]"),
        ({"x": np.zeros((2, 4, 0, 3), np.uint8), "y": np.arange(2)}, "expected uint8 pictures"),
        ({"x": np.zeros((0, 4, 4), np.uint8)}, "has no pictures"),
        ({"foo": np.zeros((2, 4, 4), np.uint8)}, "expected images"),
        (dict.fromkeys(("x", "images"), np.zeros((2, 4, 4), np.uint8)), "x and images are both"),
        ({"x": np.array([{}], dtype=object)}, "not a whole"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(
    tmp_path: Path, arrays: dict[str, Any], complaint: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=complaint):
        open_source(str(tmp_path / "bad.npz")).split("train")


@pytest.mark.parametrize("names", ["{kind}_{split}", "{split}_{kind}"])  # Keras's and MedMNIST's
def test_every_split_of_a_file_of_arrays_is_read_with_its_labels(
    tmp_path: Path, names: str
) -> None:
    images, labels = ("x", "y") if names.startswith("{kind}") else ("images", "labels")
    arrays: dict[str, Any] = {}
    for i, split in enumerate(("train", "val", "test")):
        arrays[names.format(kind=images, split=split)] = np.full((2, 4, 4), i, np.uint8)
        arrays[names.format(kind=labels, split=split)] = np.array([[i], [7]], np.uint8)
    np.savez(tmp_path / "a.npz", **arrays)
    source = open_source(str(tmp_path / "a.npz"))
    assert source.splits == ("train", "validation", "test")
    for i, split in enumerate(source.splits):
        pictures = source.split(split)
        assert pictures.labels is not None
        assert pictures.labels.tolist() == [i, 7]
        assert np.asarray(pictures.image(0)).max() == i


def test_labels_of_several_classes_a_picture_are_left_aside(tmp_path: Path) -> None:
    """As some of MedMNIST's are: pretraining needs none."""
    images = np.zeros((3, 4, 4), np.uint8)
    several, one = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]]), np.eye(3, dtype=np.uint8)
    arrays = {"train_images": images, "train_labels": several}
    np.savez(tmp_path / "a.npz", **arrays, test_images=images, test_labels=one)
    with pytest.warns(UserWarning, match="left aside the labels, which name no or several classes"):
        source = open_source(str(tmp_path / "a.npz"))
    assert source.split("train").labels is None
    labels = source.split("test").labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]


def test_arrays_of_other_names_are_told_of(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, x_test=images, labels_test=np.arange(2), y=images)
    with pytest.warns(UserWarning, match="left aside labels_test, y: "):
        source = open_source(str(tmp_path / "a.npz"))
    assert source.splits == ("train", "test")


@pytest.mark.parametrize("column", ["image_column", "label_column"])
def test_arrays_have_no_columns_to_choose_from(tmp_path: Path, column: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(UserError, match="no columns to choose from"):
        open_source(str(tmp_path / "a.npy"), **{column: "x"})


@pytest.mark.parametrize("name", ["a.tar", "b.parquet", "s-{00..09}.tar.gz", "*.parquet"])
def test_shards_by_their_path_are_for_pretraining_and_prepare(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="give the folder that they lie in"):
        open_source(str(tmp_path / name))


def test_a_source_is_gone_only_where_one_path_is_missing(tmp_path: Path) -> None:
    np.save(tmp_path / "set_trX.npy", np.zeros((3, 4), np.int64))
    for there in (tmp_path, tmp_path / "set", tmp_path / "s-*.tar", tmp_path / "s-{00..09}.tar"):
        assert not is_gone(str(there))
    assert not any(map(is_gone, ("digits", "somebody/pictures", "https://host/nothing")))
    assert is_gone(str(tmp_path / "nothing"))


def test_splits_of_rows_may_be_in_folders_in_capitals(tmp_path: Path) -> None:
    for split in ("Train", "Test"):
        (tmp_path / split).mkdir()
        rows = {"image": [{"bytes": picture_bytes(i), "path": None} for i in range(3)]}
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        dataset.to_parquet(str(tmp_path / split / "0.parquet"))
    assert set(open_source(str(tmp_path)).splits) == {"train", "test"}


def test_splits_with_other_columns_keep_their_own(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["a", "b"])
    rows = {"image": [{"bytes": picture_bytes(i), "path": None} for i in range(2)]}
    train = datasets.Dataset.from_dict(
        {**rows, "label": [1, 0]}, datasets.Features({"image": datasets.Image(), "label": kind})
    )
    test = train.remove_columns("label")
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path))
    source = open_source(str(tmp_path))
    assert source.split("train").class_names == ("a", "b")
    assert source.split("test").labels is None


def test_an_empty_name_is_no_class_and_names_are_not_mixed_with_numbers(tmp_path: Path) -> None:
    def write(split: str, labels: list[object]) -> None:
        images = [{"bytes": picture_bytes(i), "path": None} for i in range(len(labels))]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels})
        rows.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / split))

    def source(**splits: list[object]) -> Source:
        loaded = {}
        for split, labels in splits.items():
            write(split, labels)
            loaded[split] = datasets.load_from_disk(str(tmp_path / split))
        datasets.DatasetDict(loaded).save_to_disk(str(tmp_path / "all"))
        return open_source(str(tmp_path / "all"))

    train = source(train=["b", "", "a"]).split("train")
    assert train.class_names == ("a", "b")
    assert train.labels is not None
    assert train.labels.tolist() == [1, -1, 0]
    mixed = source(train=["b", "a"], test=[0, 1])
    for split in ("train", "test"):
        with pytest.raises(UserError, match="'label' holds names in one split and numbers in"):
            mixed.split(split)


def test_what_does_not_exist_or_has_no_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "readme.txt").write_text("hello")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    for name, complaint in [
        ("nothing", "no data at"),
        ("empty", "no pictures"),
        ("text", "picture"),
        ("broken.npy", "not a whole"),
        ("text/readme.txt", "is a file"),
    ]:
        with pytest.raises(UserError, match=complaint):
            open_source(str(tmp_path / name)).split("train")


def test_an_unknown_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="train, test"):
        open_source("digits").split("dev")


def test_fashion_mnist_opens_whole() -> None:
    source = open_source(str(shared("data", "fashion_mnist")))
    assert len(source.split("train")) == 60_000
    test = source.split("test")
    assert len(test) == 10_000
    images = decode_all(test.select(np.arange(50)), 28).images
    assert np.array_equal(images[..., 0], images[..., 2])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_pictures_that_metadata_do_not_list_are_counted(tmp_path: Path, kind: str) -> None:
    def write(listed: list[int]) -> None:
        if kind == "csv":
            text = "file_name,label\n" + "".join(f"{i}.png,{i}\n" for i in listed)
        else:
            text = "".join(f'{{"file_name": "{i}.png", "label": {i}}}\n' for i in listed)
        (tmp_path / f"metadata.{kind}").write_text(text)

    write_pictures(tmp_path, *(f"{i}.png" for i in range(5)))
    write([0, 3])
    with pytest.warns(UserWarning, match=rf"metadata.{kind} lists 2 pictures, and 3 others in"):
        source = open_source(str(tmp_path))
    assert len(source.split("train")) == 2
    write([*range(5)])
    assert len(open_source(str(tmp_path)).split("train")) == 5


def test_archives_of_pictures_are_refused(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("1.png", picture_bytes(1))
    with pytest.raises(UserError, match=r"train.zip is an archive: unpack it first"):
        open_source(str(tmp_path))


def test_an_archive_beside_rows_is_passed_over(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture_bytes(i), "path": None} for i in range(3)]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(str(tmp_path / "train.parquet"))
    dataset.save_to_disk(str(tmp_path / "saved"))
    for folder in (tmp_path, tmp_path / "saved"):
        with ZipFile(folder / "original.zip", "w") as archive:
            for name in ("train/1.PNG", "test/1.PNG"):
                archive.writestr(name, picture_bytes(0))
    assert len(open_source(str(tmp_path / "saved")).split("train")) == 3
    shutil.rmtree(tmp_path / "saved")
    assert len(open_source(str(tmp_path)).split("train")) == 3


def test_what_pillow_does_not_read_is_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path, "0.png", "1.png")
    for name in ("2.heic", "3.HEIC", "4.svg", "notes.txt", "film.mpg", "rows.h5"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"3 pictures are passed over.* \.HEIC, \.heic, \.svg"):
        assert len(open_source(str(tmp_path)).split("train")) == 2


def test_a_folder_called_digits_is_not_taken_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "digits", "0.png", "1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"the folder is \./digits"):
        assert len(open_source("digits").split("train")) == 1500
    assert len(open_source("./digits").split("train")) == 2


def test_a_saved_data_set_with_splits_in_capitals_is_opened(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture_bytes(i), "path": None} for i in range(3)]}
    features = datasets.Features(image=datasets.Image())
    saved = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(Train=saved, Test=saved).save_to_disk(str(tmp_path))
    assert len(open_source(str(tmp_path)).split("Train")) == 3
