"""Folders of picture files: what is a split, what is a class, and what is neither."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import datasets
import pytest
from datasets.data_files import SPLIT_KEYWORDS

from conftest import picture_bytes, write_pictures
from igpt.config import DataConfig, UserError
from igpt.data.decode import decode_all
from igpt.data.folders import SPLITS, picture_folder
from igpt.data.shards import open_streams
from igpt.data.sources import open_source


def test_a_folder_of_class_folders_has_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png")
    pictures = open_source(str(tmp_path)).split("train")
    assert pictures.class_names == ("cat", "dog")
    assert pictures.labels is not None
    assert pictures.labels.tolist() == [0, 0, 1]
    assert "cat" in pictures.name(0)


def test_a_flat_folder_of_pictures_has_none(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png", "2.png")
    pictures = open_source(str(tmp_path)).split("train")
    assert len(pictures) == 2
    assert pictures.labels is None
    assert decode_all(pictures, 4).images.shape == (2, 4, 4, 3)


def test_splits_without_class_folders_leave_the_others_their_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/3.png", "test/4.png")
    source = open_source(str(tmp_path))
    train, test = source.split("train"), source.split("test")
    assert train.class_names == ("cat", "dog")
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1]
    assert test.labels is None


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAINING", "TESTING"), ("train", "Test")])
def test_split_folders_may_be_written_in_capitals(tmp_path: Path, names: tuple[str, str]) -> None:
    train, test = names
    files = [f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/dog/3.png", f"{test}/cat/4.png"]
    write_pictures(tmp_path, *files)
    source = open_source(str(tmp_path))
    assert set(source.splits) == {"train", "test"}
    for name, labels in (("train", [0, 1]), ("test", [0, 1])):
        pictures = source.split(name)
        assert pictures.class_names == ("cat", "dog")
        assert pictures.labels is not None
        assert pictures.labels.tolist() == labels
        assert all(f"/{names[name == 'test']}/" in pictures.name(i) for i in range(2))


def test_a_picture_called_test_does_not_hide_the_others(tmp_path: Path) -> None:
    write_pictures(tmp_path, "cat.png", "dog.png", "test.png")
    source = open_source(str(tmp_path))
    assert source.splits == ("train",)
    assert len(source.split("train")) == 3


def test_a_class_folder_that_sounds_like_a_split_is_a_class(tmp_path: Path) -> None:
    write_pictures(tmp_path, "test tubes/1.png", "other/1.png")
    pictures = open_source(str(tmp_path)).split("train")
    assert pictures.class_names == ("other", "test tubes")
    assert pictures.labels is not None
    assert [pictures.class_names[k] in pictures.name(i) for i, k in enumerate(pictures.labels)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("train", "test", "other"),
    [("train", "test", "preview.png"), ("train", "test", "unlabeled/1.png"),
     ("Train", "Test", "preview.png"), ("Training", "Test", "Other/1.png")],
)  # fmt: skip
def test_pictures_beside_the_splits_do_not_mix_them(
    tmp_path: Path, train: str, test: str, other: str
) -> None:
    write_pictures(tmp_path, *(f"{split}/{kind}/1.png" for split in (train, test) for kind in "ab"))
    write_pictures(tmp_path, other)
    with pytest.warns(UserWarning, match=f"1 pictures of .* are in none of {test}, {train}"):
        source = open_source(str(tmp_path))
    assert source.splits == ("train", "test")
    assert source.split("train").class_names == ("a", "b")
    assert [len(source.split(split)) for split in source.splits] == [2, 2]


def test_notes_and_hidden_files_beside_the_pictures_are_passed_over(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png", "2.PNG", ".3.png")
    for i in range(5):
        (tmp_path / f"note{i}.txt").write_text("hello")
    assert len(open_source(str(tmp_path)).split("train")) == 2


@pytest.mark.parametrize(
    ("train", "test", "other"),
    [
        ("training_set", "test_set", "single_prediction/1.png"),
        ("train_images", "test_images", "cover.png"),
        ("my-train", "my-test", "misc/1.png"),
        ("images/train", "images/test", "images/extra/1.png"),
        ("data/train", "data/test", "preview.png"),
        ("data/train", "data/test", "assets/banner.png"),
        ("train2017", "val2017", "panoptic/1.png"),
        ("train", "test1", "old_train/1.png"),
        ("training_set", "test", "cover.png"),
        ("TrainSet", "TestSet", "cover.png"),
        ("contest_train", "contest_test", "cover.png"),
        ("training_set/training_set", "test_set/test_set", "cover.png"),
        ("seg_train/seg_train", "seg_test/seg_test", "seg_pred/seg_pred/1.png"),
    ],
)
def test_splits_may_be_called_alike(tmp_path: Path, train: str, test: str, other: str) -> None:
    write_pictures(tmp_path, *(f"{split}/{kind}/1.png" for split in (train, test) for kind in "ab"))
    write_pictures(tmp_path, other)
    with pytest.warns(UserWarning, match=r"1 pictures of .* are in none of"):
        source = open_source(str(tmp_path))
    assert set(source.splits) == {"train", "validation" if "val" in test else "test"}
    for name in source.splits:
        assert source.split(name).class_names == ("a", "b")
        assert len(source.split(name)) == 2


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["test", "other"], ("other", "test")),  # one split alone is a class among others
        (["cats/day1", "dogs/day1"], ("cats", "dogs")),
        (["all/cat", "all/dog"], ("cat", "dog")),
        (["all/day1"], None),
        (["train/cat", "train/dog"], ("cat", "dog")),
    ],
)
def test_the_outermost_folders_of_which_there_are_several_are_classes(
    tmp_path: Path, names: list[str], classes: tuple[str, ...] | None
) -> None:
    write_pictures(tmp_path, *(f"{name}/1.png" for name in names))
    source = open_source(str(tmp_path))
    assert source.splits == ("train",)
    assert source.split("train").class_names == classes


def test_folders_that_hold_all_of_a_split_are_no_classes(tmp_path: Path) -> None:
    """As in Tiny-ImageNet."""
    train = [f"train/{name}/images/{i}.png" for name in ("n01", "n02") for i in (1, 2)]
    write_pictures(tmp_path, *train, "val/images/1.png", "test/images/1.png", "test/images/2.png")
    source = open_source(str(tmp_path))
    assert source.split("train").class_names == ("n01", "n02")
    assert [source.split(name).labels for name in ("validation", "test")] == [None, None]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test", "testing"),
        ("train_a", "test_a", "train_b", "test_b"),
        ("test tubes", "train tracks"),
        ("bottle/train", "bottle/test", "cable/train", "cable/test"),
        ("images/train", "images/val", "masks/train", "masks/val"),
    ],
)
def test_where_it_is_not_clear_which_folders_are_splits_they_are_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    write_pictures(tmp_path, *(f"{name}/1.png" for name in names))
    with pytest.raises(UserError, match=r"which folders of .* are splits|in several folders"):
        open_source(str(tmp_path))


def test_a_folder_whose_only_pictures_are_for_testing_is_a_test_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, "test/cat/1.png", "test/dog/1.png")
    assert open_source(str(tmp_path)).splits == ("test",)


def test_rows_are_read_where_pictures_only_go_along_with_them(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture_bytes(i, (90, 90)), "path": None} for i in range(3)]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "data").mkdir()
    dataset.to_parquet(str(tmp_path / "data" / "train.parquet"))
    write_pictures(tmp_path, "data/banner.png")
    assert picture_folder(tmp_path) is None
    (tmp_path / "data" / "large.png").write_bytes(picture_bytes(0, (300, 300)))
    with pytest.warns(UserWarning, match=r"train.parquet is beside pictures"):
        assert len(open_source(str(tmp_path)).split("train")) == 2


def test_split_folders_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    """The library would make the splits' own names classes."""
    write_pictures(tmp_path, "train/1.png", "train/2.png", "test/3.png")
    source = open_source(str(tmp_path))
    assert [source.split(name).labels for name in ("train", "test")] == [None, None]


def test_an_index_means_the_same_class_in_every_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, "train/b/1.png", "train/c/2.png", "test/a/3.png", "test/c/4.png")
    source = open_source(str(tmp_path))
    for name, labels in (("train", [1, 2]), ("test", [0, 2])):
        pictures = source.split(name)
        assert pictures.class_names == ("a", "b", "c")
        assert pictures.labels is not None
        assert pictures.labels.tolist() == labels


def test_the_words_for_splits_are_the_librarys() -> None:
    theirs = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
    assert theirs == SPLITS


def test_linked_folders_are_read_and_never_in_a_circle(tmp_path: Path) -> None:
    write_pictures(tmp_path / "elsewhere", "1.png", "2.png")
    data = tmp_path / "data"
    write_pictures(data, "train/cat/1.png", "test/cat/1.png", "test/dog/2.png")
    (data / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    (data / "train" / "cat" / "round").symlink_to(data)
    (data / "all").symlink_to(data / "train")  # of two ways to a folder none is lost
    (data / "gone").symlink_to(tmp_path / "nowhere")
    (data / "itself").symlink_to("itself")
    with pytest.warns(UserWarning, match="3 pictures .* in none of test, train"):
        train = open_source(str(data)).split("train")
    assert len(train) == 3
    assert train.class_names == ("cat", "dog")


def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path, "train/1.png", "test/1.png")
    scan = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("train"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*train: Permission denied"):
        open_source(str(tmp_path))


def test_a_file_called_as_a_saved_set_has_it_is_no_saved_set(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "state.json").write_text("{}")
    assert len(open_source(str(tmp_path)).split("train")) == 2


def test_metadata_that_the_library_cannot_use_are_told_and_never_passed_over(
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path, "train/1.png", "train/2.png", "test/1.png")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"filename": "1.png"}\n')
    with pytest.raises(UserError, match="cannot open"):
        open_source(str(tmp_path))


def test_pictures_beside_the_class_folders_have_no_label(tmp_path: Path) -> None:
    write_pictures(tmp_path, "all/cat/1.png", "all/dog/old/1.png", "all/sheet.png", "cover.png")
    pictures = open_source(str(tmp_path)).split("train")
    assert pictures.class_names == ("cat", "dog")
    assert pictures.labels is not None
    assert {Path(pictures.name(i)).name: k for i, k in enumerate(pictures.labels.tolist())} == {
        "1.png": 1, "cover.png": -1, "sheet.png": -1
    }  # fmt: skip
    assert pictures.labels.tolist().count(0) == 1


def test_a_folder_of_pictures_has_no_columns(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(UserError, match="no columns to choose from"):
        open_source(str(tmp_path), label_column="diagnosis")


def test_a_stream_has_the_splits_of_the_set_and_the_order_that_it_tells(tmp_path: Path) -> None:
    flat = [f"{name}_{i}.png" for name in ("train", "tram") for i in "12"]
    write_pictures(tmp_path / "flat", *flat)
    for i in range(3):
        (tmp_path / "flat" / f"train_{i}.txt").write_text("a caption")
    # A folder whose name begins like another's, and names that are patterns to the library.
    names = [
        f"my-train/{kind}/{i}.png" for kind in ("cat", "cat-wild", "a b", "x [1]") for i in "12"
    ]
    write_pictures(
        tmp_path / "set [v2]", *names, "my-val/cat/1.png", "my-val/cat/2.png", "misc.png"
    )
    (tmp_path / "elsewhere").mkdir()
    write_pictures(tmp_path / "elsewhere", "1.png")
    (tmp_path / "set [v2]" / "my-train" / "linked").symlink_to(tmp_path / "elsewhere")
    for folder, n, warned in (("flat", [4], False), ("set [v2]", [9, 2], True)):
        expects = pytest.warns(UserWarning, match="none of my-train") if warned else nullcontext()
        with expects:
            opened = open_streams(DataConfig(source=str(tmp_path / folder), streaming=True))
        streams = [stream for stream in opened if stream is not None]
        with expects:
            source = open_source(str(tmp_path / folder))
        assert source.stream_order is not None
        sets = [source.split(name).select(source.stream_order(name)) for name in source.splits]
        read = [[row.name for row in stream.read().rows(20)] for stream in streams]
        assert [len(names) for names in read] == n
        assert read == [[part.name(i) for i in range(len(part))] for part in sets]
