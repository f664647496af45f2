"""Labels in a `metadata.csv`: what is a name, what a number, what is missing, what is a mistake."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import write_pictures
from igpt.config import UserError
from igpt.data.metadata import Metadata, read_sheets
from igpt.data.sources import open_source


def labels_of(folder: Path, values: list[str], column: str | None = None) -> list[str | None]:
    """The classes of a folder's pictures, with these labels in its metadata."""
    write_pictures(folder, *(f"{i:05}.png" for i in range(len(values))))
    text = io.StringIO()
    csv.writer(text).writerows(
        [("file_name", "label"), *((f"{i:05}.png", v) for i, v in enumerate(values))]
    )
    (folder / "metadata.csv").write_text(text.getvalue(), newline="")
    train = open_source(str(folder), label_column=column).split("train")
    if train.labels is None or train.class_names is None:
        return []
    return [None if i < 0 else train.class_names[i] for i in train.labels]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["None", "NA", "null", "nan", ""], ["None", "NA", "null", "nan", None]),
        (["007", "7", "0"], ["007", "7", "0"]),
        (["3", "", "1"], ["3", None, "1"]),
        (["3.0", "", "1.0"], ["3", None, "1"]),  # as a table writes whole numbers, some missing
        (["3", "NaN", "1"], ["3", None, "1"]),
        (["2019", "2021", "2019"], ["2019", "2021", "2019"]),
        (["-1", "0", "1"], [None, "0", "1"]),
        (["cat ", "cat", " dog"], ["cat", "cat", "dog"]),
        (["1 ", "+2", "1"], ["1", "2", "1"]),
        (["1_0", "2"], ["1_0", "2"]),
        (["True", "False"], ["True", "False"]),
        (["a cat, or two", 'a "dog"'], ["a cat, or two", 'a "dog"']),
        (["", ""], []),
    ],
)
def test_only_an_empty_field_is_a_missing_label(
    tmp_path: Path, written: list[str], expected: list[str | None]
) -> None:
    assert labels_of(tmp_path, written) == expected


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        (["0.5", "1"], "'0.5' is neither"),
        (["inf", "1"], "'inf' is neither"),
        (["-1", "1"], "the first means a missing one"),
    ],
)
def test_a_column_of_quantities_is_passed_over_with_a_word(
    tmp_path: Path, written: list[str], complaint: str
) -> None:
    with pytest.warns(UserWarning, match=complaint):
        assert labels_of(tmp_path, written) == []


def test_pictures_come_in_the_order_of_their_lines_whatever_their_names(tmp_path: Path) -> None:
    """As the library has them: which are held out depends on it."""
    write_pictures(tmp_path, "a.png", "b", "c.png", "s/.d.png", "s/e.png")
    lines = ["c.png", "a.png", "s\\.d.png", "s/e.png", "b"]
    (tmp_path / "metadata.csv").write_text(
        "file_name,note\r\n" + "".join(f"{x},\r\n" for x in lines)
    )
    (tmp_path / "s" / "metadata.csv").write_text("image_file_name,label\ne.png,cat\n")
    train = open_source(str(tmp_path)).split("train")
    names = [str(Path(train.name(i)).relative_to(tmp_path)) for i in range(len(train))]
    assert names == ["c.png", "a.png", "s/.d.png", "s/e.png", "b"]
    assert train.labels is not None
    assert train.labels.tolist() == [-1, -1, -1, 0, -1]


def test_names_may_come_after_thousands_without(tmp_path: Path) -> None:
    """The library guesses the kind of a column from its first ten thousand rows."""
    rows = "".join(f"{i}.png,\n" for i in range(10_001))
    write_pictures(tmp_path, "0.png")
    for i in range(1, 10_002):
        (tmp_path / f"{i}.png").symlink_to("0.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n{rows}10001.png,cat\n")
    train = open_source(str(tmp_path)).split("train")
    assert train.labels is not None
    assert (train.labels >= 0).sum() == 1
    assert train.class_names == ("cat",)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)))
def test_names_are_read_as_they_are_written(values: list[str]) -> None:
    names = [f"class {value}" for value in values]  # no number, and nothing to strip
    rows = {f"{i}.png": (name,) for i, name in enumerate(names)}
    files = [Path(name) for name in rows]
    metadata = Metadata((Path("metadata.csv"),), "label", rows)
    found = metadata.classes({"train": files})
    assert found is not None or not names
    for labels, classes in (found or {}).values():
        assert labels is not None
        assert classes is not None
        assert [classes[i] for i in labels] == names


def test_splits_and_folders_are_those_of_the_files(tmp_path: Path) -> None:
    write_pictures(tmp_path, *(f"{split}/{i}.png" for split in ("train", "test") for i in "12"))
    listed = "train/1.png,cat\n./train/2.png,dog\ntest/1.png,dog\n"
    (tmp_path / "metadata.csv").write_text(f"\ufefffile_name, kind\n{listed}", encoding="utf-8")
    with pytest.warns(UserWarning, match="lists 3 pictures, and 1 others in"):
        source = open_source(str(tmp_path), label_column="kind")
    assert source.splits == ("train", "test")
    found = {name: source.split(name) for name in source.splits}
    assert {name: part.class_names for name, part in found.items()} == {
        "train": ("cat", "dog"),
        "test": ("cat", "dog"),
    }
    assert {name: [*part.labels] for name, part in found.items() if part.labels is not None} == {
        "train": [0, 1],
        "test": [1],
    }


def test_metadata_of_one_split_leave_the_others_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path, "train/1.png", "train/2.png", "test/1.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n1.png,cat\n2.png,dog\n")
    source = open_source(str(tmp_path))
    test = source.split("test")
    assert len(source.split("train")) == 2
    assert test.labels is not None
    assert test.labels.tolist() == [-1]


def test_without_labels_in_the_metadata_folders_are_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,width\ncat/1.png,6\ndog/1.png,6\n")
    assert open_source(str(tmp_path)).split("train").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "metadata.csv has no column file_name: it is empty"),
        ("filename,label\n1.png,cat\n", "has no column file_name: filename, label"),
        ("file_name;label\n1.png;cat\n", "has no column file_name: file_name;label"),
        ("file_name,label\nnone.png,dog\n", "lists no file that is there, like .*none.png"),
        ("file_name,label\n,cat\n", "line 2: '' is no file below it"),
        ("file_name,label\n../1.png,cat\n", "line 2: '../1.png' is no file below it"),
        ("file_name,label,label\n1.png,cat,dog\n", "has two of a column: file_name, label, label"),
        ('file_name,label\n1.png,"cat\n2.png,dog\n', "cannot read .*unexpected end of data"),
        ("file_name,label\n1.png,cat\n1.png,dog\n", "line 3: 1.png is listed already"),
        ("file_name,label\n1.png,a cat, or two\n", "line 2: more fields than columns"),
        ("file_name,label\n", "lists no file that is there"),
    ],
)
def test_a_mistake_in_the_metadata_is_told(tmp_path: Path, text: str, complaint: str) -> None:
    write_pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        open_source(str(tmp_path))


def test_metadata_in_another_encoding_are_told(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes("file_name,label\n1.png,K\xe4se\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"cannot read .*metadata.csv: .*utf-8"):
        read_sheets([tmp_path / "metadata.csv"])


def test_a_column_that_is_asked_for_must_be_there_and_hold_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'label' must be whole numbers or names"):
        labels_of(tmp_path, ["0.5", "1"], "label")
    with pytest.raises(UserError, match="has no column 'kind', only: file_name, label"):
        labels_of(tmp_path, ["0", "1"], "kind")


def test_files_that_are_listed_and_not_there_are_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n")
    with pytest.warns(UserWarning, match=r"1 of its files are not there, like .*0\.png"):
        assert len(open_source(str(tmp_path)).split("train")) == 1
