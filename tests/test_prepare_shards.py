"""Shards made into smaller ones: every path and URL, labels, being killed, mistakes."""

from __future__ import annotations

import io
import json
import shutil
import signal
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
from PIL import Image

import several
from conftest import assert_mistake, picture_bytes
from igpt.config import DataConfig
from igpt.data.decode import decode_all, fit_square, to_rgb
from igpt.data.shards import next_pictures, open_streams
from igpt.data.sources import open_source
from numbered_shards import add, picture, write_tar

SIZE = 8
PICTURES = [picture_bytes(i, (20 + 3 * i, 40 - i), "JPEG" if i % 2 else "PNG") for i in range(13)]
LABELS = [i % 3 for i in range(13)]
BROKEN = 5
KEPT = [i for i in range(13) if i != BROKEN]
PIXELS = np.stack([fit_square(to_rgb(Image.open(io.BytesIO(PICTURES[i]))), SIZE) for i in KEPT])
CLASSES = datasets.ClassLabel(names=["ant", "bee", "cat"])


def stored(i: int) -> bytes:
    return PICTURES[i][: 60 if i == BROKEN else None]


def write_webdataset(path: Path, members: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for i in members:
            add(archive, f"{i:04}.img.png", stored(i))
            add(archive, f"{i:04}.cls", str(LABELS[i]).encode())
            add(archive, f"{i:04}.json", b'{"width": 3}')


def write_table(path: Path, members: Sequence[int], kind: Any = CLASSES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"photo": datasets.Image(), "label": kind, "note": kind})
    rows = [{"bytes": stored(i), "path": None} for i in members]
    labels = [LABELS[i] for i in members]
    if kind.dtype == "string":
        labels = [None if label == 1 else CLASSES.int2str(label) for label in labels]
    columns = {"photo": rows, "label": labels, "note": labels}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures in one file of each kind, and in three."""
    path = tmp_path_factory.mktemp("shards")
    parts = (range(4), range(4, 8), range(8, 13))
    write_webdataset(path / "all.tar", range(13))
    write_webdataset(path / "all.tgz", range(13))
    write_table(path / "all.parquet", range(13))
    for number, members in enumerate(parts):
        write_webdataset(path / f"part-{number:02}.tar", members)
        write_table(path / f"part-{number:02}.parquet", members)
    return path


def shards(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "data").glob("*.parquet"))}


def assert_prepared(out: Path, names: tuple[str, ...] | None) -> None:
    ours = open_source(str(out)).split("train")
    np.testing.assert_array_equal(decode_all(ours, SIZE).images, PIXELS)
    np.testing.assert_array_equal(ours.labels, [LABELS[i] for i in KEPT])
    assert ours.class_names == names


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("{}/all.tar", 1),
        ("{}/all.tgz", 1),
        ("{}/all.parquet", 1),
        ("{}/part-{{00..02}}.tar", 3),
        ("{}/part-*.parquet", 3),
        ("file://{}/part-*.tar", 3),
    ],
)
def test_every_kind_of_shards_gives_the_pixels_and_labels_of_the_originals(
    igpt, folder: Path, tmp_path: Path, source: str, files: int
) -> None:
    out, data = tmp_path / "out", source.format(folder)
    words = ("--size", SIZE, "--workers", 1, "--out", out, "--json")
    result = igpt("prepare", "--data", data, *words)
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert (report["pictures"], report["skipped"], report["shards"]) == (12, 1, files)
    assert_prepared(out, tuple(CLASSES.names) if "parquet" in source else None)
    manifest = json.loads((out / "manifest.json").read_text())
    (skipped,) = [name for shard in manifest["shards"] for name in shard["skipped"]]
    assert "all" in skipped or "part-01" in skipped, skipped


def test_shards_at_a_url_are_read_and_labels_that_are_names_stay_names(
    igpt, tmp_path: Path
) -> None:
    write_table(tmp_path / "names.parquet", range(13), datasets.Value("string"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/names.parquet", (tmp_path / "names.parquet").read_bytes())
    out, data = tmp_path / "out", "memory://bucket/*.parquet"
    words = ("--size", SIZE, "--label-column", "note", "--workers", 1, "--out", out)
    assert igpt("prepare", "--data", data, *words).status == 0
    ours = open_source(str(out)).split("train")
    np.testing.assert_array_equal(decode_all(ours, SIZE).images, PIXELS)
    assert ours.class_names == ("ant", "cat")
    assert ours.labels is not None
    assert ours.labels.tolist() == [(0, -1, 1)[LABELS[i]] for i in KEPT]


def test_labels_that_are_true_or_false_are_classes_0_and_1(igpt, tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture(i), "path": None} for i in (0, 2)], "label": [True, False]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("bool")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "b.parquet"))
    words = ("--size", 4, "--workers", 1, "--out", tmp_path / "out")
    assert igpt("prepare", "--data", tmp_path / "b.parquet", *words).status == 0
    ours = open_source(str(tmp_path / "out")).split("train")
    assert ours.labels is not None
    assert ours.labels.tolist() == [1, 0]


def test_labels_that_are_no_classes_are_left_out_and_told(igpt, tmp_path: Path) -> None:
    rows = {"image": [{"bytes": picture(i), "path": None} for i in (0, 2)], "label": [1.0, None]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "f.parquet"))
    words = ("--size", 4, "--workers", 1, "--out", tmp_path / "out")
    done = igpt("prepare", "--data", tmp_path / "f.parquet", *words)
    assert done.status == 0, done.err
    assert "'label' holds neither whole numbers nor names, and is left out" in done.err
    assert open_source(str(tmp_path / "out")).split("train").labels is None


def test_a_file_of_many_pictures_becomes_as_many_shards_as_it_takes_in_its_order(
    igpt, tmp_path: Path
) -> None:
    write_tar(tmp_path / "many.tar", range(12))
    out = tmp_path / "out"
    words = ("--size", 4, "--shard-pictures", 4, "--workers", 1, "--out", out)
    assert igpt("prepare", "--data", tmp_path / "many.tar", *words).status == 0
    name = "train-00000-of-00001"
    assert list(shards(out)) == [
        f"{name}.parquet",
        f"{name}_00001.parquet",
        f"{name}_00002.parquet",
    ]
    images = decode_all(open_source(str(out)).split("train"), 4).images
    assert images[:, 0, 0, 0].tolist() == list(range(12))
    again, _ = open_streams(DataConfig(source=str(out), streaming=True))
    streamed = next_pictures(again.read(), 20, 4, fit_square).images
    np.testing.assert_array_equal(streamed, images)


def test_a_folder_of_webdataset_shards_has_their_labels_too(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "all.tar", tmp_path)
    ours = open_source(str(tmp_path)).split("train")
    assert ours.labels is not None
    assert ours.labels.tolist() == LABELS


def test_processes_and_machines_share_files_and_make_the_same_shards(
    igpt, folder: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ("--data", f"{folder}/part-*.tar", "--size", SIZE, "--shard-pictures", 3)
    assert igpt("prepare", *words, "--workers", 2, "--out", whole).status == 0
    assert_prepared(whole, None)
    for part, missing in (("1/2", 2), ("0/2", 0)):
        assert not (parts / "manifest.json").exists()
        options = ("--workers", 1, "--part", part, "--json", "--out", parts)
        assert json.loads(igpt("prepare", *words, *options).out)["missing"] == missing
    assert shards(parts) == shards(whole)
    assert (parts / "manifest.json").read_text() == (whole / "manifest.json").read_text()


def test_killed_within_a_file_it_goes_on_after_the_last_whole_shard(igpt, tmp_path: Path) -> None:
    write_tar(tmp_path / "many.tar", range(90))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ["prepare", "--data", str(tmp_path / "many.tar"), "--size", "4", "--workers", "1"]
    words += ["--shard-pictures", "1", "--out"]
    assert igpt(*words, whole).status == 0
    running = several.igpt(1, *words, killed)
    deadline = time.monotonic() + 60
    while len(list(killed.glob(".shards/train-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    running.send(signal.SIGKILL, [0])
    assert running.wait() == [-signal.SIGKILL]
    assert not (killed / "manifest.json").exists(), "it was done before it was killed"
    first = killed / "data/train-00000-of-00001.parquet"
    made = first.stat().st_mtime_ns
    assert igpt(*words, killed).status == 0
    assert shards(killed) == shards(whole)
    assert (killed / "manifest.json").read_text() == (whole / "manifest.json").read_text()
    assert first.stat().st_mtime_ns == made


def test_a_file_that_breaks_off_is_named_and_what_was_made_is_kept(igpt, tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"set/{n}.tar", range(20 * n, 20 * n + 20))
    whole = (tmp_path / "set/1.tar").read_bytes()
    (tmp_path / "set/1.tar").write_bytes(whole[: 11 * 1024 + 550])  # within the 12th picture
    out = tmp_path / "out"
    words = ("--data", f"{tmp_path}/set/*.tar", "--size", 4, "--workers", 1, "--out", out)
    result = igpt("prepare", *words)
    assert_mistake(result, "1.tar broke off after 0030.png: unexpected end of data")
    assert list(shards(out)) == ["train-00000-of-00002.parquet"]
    (tmp_path / "set/1.tar").write_bytes(whole)
    assert igpt("prepare", *words).status == 0
    assert len(shards(out)) == 2


def write_texts(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        add(archive, "0.txt", b"no picture")


def write_measures(path: Path) -> None:
    row = {"image": [{"bytes": picture(0), "path": None}], "label": [0.5]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float32")})
    datasets.Dataset.from_dict(row, features=features).to_parquet(str(path))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--data", "nowhere/*.tar"], "no file nowhere/*.tar"),
        (["--data", "nowhere/{00..01}.parquet"], "no file nowhere/00.parquet"),
        (["--data", "memory://nowhere/*.tar"], "no file memory://nowhere/*.tar"),
        (["--data", "memory://nowhere/0.tar"], "no stream of pictures at memory://nowhere/0.tar"),
        (["--data", "memory://nowhere"], "no stream at 'memory://nowhere'"),
        (["--data", "dropbox://nowhere/0.tar"], "pip install 'fsspec[s3,gcs,http]'"),
        (["--data", "texts.tar"], "expected one column of pictures"),
        (
            ["--data", "measures.parquet", "--label-column", "label"],
            "must be whole numbers or names, not float32",
        ),
        (["--image-column", "image"], "has no column 'image', only: photo, label, note"),
        (["--label-column", "class"], "has no column 'class', only: photo, label, note"),
    ],
)
def test_mistakes_about_shards_are_one_line_and_leave_nothing(
    igpt,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts.tar")
    write_measures(tmp_path / "measures.parquet")
    source = ("--data", folder / "all.parquet", *words)
    assert_mistake(igpt("prepare", *source, "--size", 8, "--out", "out"), complaint)
    assert not Path("out").exists()
