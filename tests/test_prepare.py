"""Sources made into shards: what they hold, mistakes, and being killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import several
from conftest import assert_mistake, picture_bytes, write_pictures
from igpt.cli import main
from igpt.data.decode import decode_all
from igpt.data.pictures import Pictures
from igpt.data.sources import open_source
from igpt.prepare import Finished, Piece, Preparation, _map

BROKEN = "broken.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures of many shapes and kinds, one of them broken."""
    path = tmp_path_factory.mktemp("pictures")
    for i in range(23):
        name, kind = ("cats", "JPEG") if i % 2 else ("dogs", "PNG")
        (path / name).mkdir(exist_ok=True)
        data = picture_bytes(i, size=(20 + 3 * i, 40 - i), image_format=kind)
        (path / name / f"{i:02d}.{kind.lower()}").write_bytes(data)
    (path / "cats" / BROKEN).write_bytes(picture_bytes(0)[:60])
    return path


def everything(folder: Path, split: str = "train") -> tuple[Pictures, np.ndarray]:
    pictures = open_source(str(folder)).split(split)
    return pictures, decode_all(pictures, 8).images


def shards(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "data").iterdir())}


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_hold_the_pixels_and_labels_that_training_would_have_seen(
    igpt, folder: Path, tmp_path: Path, workers: int
) -> None:
    out, source = tmp_path / "out", tmp_path / "source"
    shutil.copytree(folder, source)
    options = ("--size", 8, "--shard-pictures", 5, "--workers", workers)
    result = igpt("prepare", "--data", f"{source}/", *options, "--out", out, "--json")
    shutil.rmtree(source)  # shards stand on their own
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert (report["pictures"], report["skipped"], report["shards"]) == (23, 1, 5)

    with pytest.warns(UserWarning, match=BROKEN):
        theirs, expected = everything(folder)
    ours, found = everything(out)
    assert ours.class_names == theirs.class_names == ("cats", "dogs")
    assert theirs.labels is not None
    assert ours.labels is not None
    names = [str(Path(theirs.name(i)).relative_to(folder)) for i in range(len(theirs))]
    kept = [i for i, name in enumerate(names) if name != f"cats/{BROKEN}"]
    place = {ours.name(i): i for i in range(len(ours))}
    order = [place[names[i]] for i in kept]
    np.testing.assert_array_equal(found[order], expected)
    np.testing.assert_array_equal(ours.labels[order], theirs.labels[kept])
    assert len(set(ours.labels[:8])) == 2  # as a stream of them holds out what comes first


def test_names_that_are_no_text_are_prepared_as_text(igpt, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"set\xff")
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(picture_bytes(0))
    (folder / os.fsdecode(b"broken\xff.png")).write_bytes(b"")
    out = tmp_path / "out"
    result = igpt("prepare", "--data", folder, "--size", 8, "--out", out, "--workers", 1)
    assert result.status == 0, result.err
    assert open_source(str(out)).split("train").name(0) == "\\udcff.png"
    (shard,) = json.loads((out / "manifest.json").read_text())["shards"]
    assert "broken\\udcff.png" in shard["skipped"][0]


def test_the_manifest_counts_checks_and_names(igpt, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    igpt("prepare", "--data", folder, "--size", 8, "--out", out, "--workers", 1)
    manifest = json.loads((out / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    data = (out / shard["file"]).read_bytes()
    assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    assert shard["bytes"] == len(data)
    assert shard["pictures"] == 23
    (skipped,) = shard["skipped"]
    assert BROKEN in skipped


def test_splits_stay_apart_and_a_model_trains_on_shards(igpt, tmp_path: Path) -> None:
    out, run = tmp_path / "out", tmp_path / "run"
    igpt("prepare", "--data", "digits", "--size", 8, "--out", out, "--workers", 1)
    source = open_source(str(out))
    assert {name: len(source.split(name)) for name in source.splits} == {"train": 1500, "test": 297}
    small = ["--steps", 2, "model.n_layer=1", "model.n_embd=8", "train.warmup_steps=1"]
    result = igpt("pretrain", "digits", "--data", out, "--out", run, *small)
    assert result.status == 0, result.err


def test_parts_of_several_machines_add_up_to_the_same_shards(
    igpt, folder: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--data", folder, "--size", 8, "--shard-pictures", 4, "--workers", 1)
    igpt("prepare", *options, "--out", whole)
    first = igpt("prepare", *options, "--out", parts, "--part", "1/2", "--json")
    assert json.loads(first.out)["missing"] == 3
    assert not (parts / "manifest.json").exists()
    second = igpt("prepare", *options, "--out", parts, "--part", "0/2", "--json")
    assert json.loads(second.out)["missing"] == 0
    assert shards(parts) == shards(whole)
    assert (parts / "manifest.json").read_text() == (whole / "manifest.json").read_text()


def apart(*argv: str) -> None:
    """The command line, in a group of processes of its own."""
    os.setsid()
    main(list(argv))


def test_killed_at_a_random_moment_it_goes_on_to_identical_shards(igpt, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["prepare", "--data", "digits", "--size", "8", "--shard-pictures", "20", "--out"]
    assert igpt(*options, whole, "--workers", 1).status == 0
    rng = random.Random(os.getpid())
    running = several.Several(1, apart, (*options, str(killed), "--workers", "2"))
    (process,) = running.processes
    enough, deadline = rng.randrange(1, 15), time.monotonic() + 60
    while time.monotonic() < deadline and process.exitcode is None:
        if len(list(killed.glob("data/*.parquet"))) >= enough:
            break
        time.sleep(0.002)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join(60)
    assert not (killed / "manifest.json").exists(), f"done before {enough} were seen"
    assert igpt(*options, killed, "--workers", 1).status == 0
    assert shards(killed) == shards(whole), enough
    assert len(shards(killed)) == 90  # 75 to train on, 15 to test on


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    options = ["--data", "digits", "--size", "8", "--shard-pictures", "20", "--workers", "2"]
    command = [sys.executable, "-m", "igpt", "prepare", *options, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/data/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()  # and not its workers, who have its stderr open
        process.communicate(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out" / "manifest.json").exists(), "done before it was killed"


class Endless(Preparation):
    """Its pieces are never done."""

    def write(self, piece: Piece) -> list[Finished]:
        (self.out / "begun").touch()
        time.sleep(60)
        return super().write(piece)


def test_who_interrupts_does_not_wait_for_pieces(tmp_path: Path) -> None:
    began = 0.0

    def interrupted() -> None:
        nonlocal began
        with _map(Endless("digits", 8, tmp_path), 2) as run:
            run([Piece("train", number, 8) for number in range(8)])
            while not (tmp_path / "begun").exists():
                time.sleep(0.01)
            began = time.monotonic()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 30


def test_what_was_there_is_told_of_and_nothing_readable_is_a_mistake(igpt, tmp_path: Path) -> None:
    write_pictures(tmp_path / "few", "1.png", "2.png")
    call = ("prepare", "--size", 8, "--workers", 1, "--data")
    assert "from an earlier call" not in igpt(*call, tmp_path / "few", "--out", tmp_path / "a").err
    again = igpt(*call, tmp_path / "few", "--out", tmp_path / "a")
    assert "1 of 1 pieces are there from an earlier call" in again.err
    for name in ("1.png", "2.png"):
        (tmp_path / "few" / name).write_bytes(b"")
    broken = igpt(*call, tmp_path / "few", "--out", tmp_path / "b")
    assert broken.status == 2
    assert "can be read: " in broken.err


def test_splits_with_and_without_labels_are_opened_together(igpt, tmp_path: Path) -> None:
    write_pictures(tmp_path / "few", "train/1.png", "train/2.png", "test/a/1.png", "test/b/2.png")
    words = ("--data", tmp_path / "few", "--size", 8, "--workers", 1, "--out", tmp_path / "out")
    assert igpt("prepare", *words).status == 0
    source = open_source(str(tmp_path / "out"))
    train, test = source.split("train").labels, source.split("test").labels
    assert train is not None
    assert test is not None
    assert (train.tolist(), sorted(test.tolist())) == ([-1, -1], [0, 1])


def test_a_truncated_shard_is_made_again(igpt, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ("prepare", "--data", folder, "--size", 8, "--out", out, "--workers", 1)
    igpt(*call)
    before = shards(out)
    (name,) = before
    (out / "data" / name).write_bytes(before[name][:100])
    assert igpt(*call).status == 0
    assert shards(out) == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--part", "4/4"), "--part must be I/N"),
        (("--workers", "0"), "--workers: must be at least 1"),
        (("--shard-pictures", "0"), "--shard-pictures: must be at least 1"),
        (("--size", "0"), "--size: must be at least 1"),
        (("--data", "nowhere"), "no data at 'nowhere'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    igpt, tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    out = tmp_path / "out"
    result = igpt("prepare", "--data", "digits", "--size", 8, "--out", out, *options)
    assert_mistake(result, complaint)
    assert not out.exists()


def test_more_shards_than_the_library_numbers_are_refused(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igpt.prepare.MOST_PIECES", 100)
    options = ("--data", "digits", "--size", 8, "--out", tmp_path / "out", "--workers", 1)
    assert_mistake(
        igpt("prepare", *options, "--shard-pictures", 10),
        "train would be more than 100 shards, which the `datasets` library does not number",
    )


def test_a_folder_of_other_settings_or_of_something_else_is_refused(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    call = ("prepare", "--data", "digits", "--out", out, "--workers", 1)
    igpt(*call, "--size", 8)
    assert_mistake(igpt(*call, "--size", 12), "prepared with image_size 8, not 12")
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (4, 4)).save(other / "mine.png")
    result = igpt("prepare", "--data", "digits", "--size", 8, "--out", other)
    assert_mistake(result, "is not empty")
    assert [p.name for p in other.iterdir()] == ["mine.png"]
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # scikit-learn's digits, whatever folder is there
        words = ("--data", "digits", "--size", 8, "--workers", 1, "--out", "digits/8")
        assert igpt("prepare", *words).status == 0
    result = igpt("prepare", "--data", other, "--size", 8, "--out", other / "small")
    assert_mistake(result, "is among the pictures of")
    assert [p.name for p in other.iterdir()] == ["mine.png"]


def test_killed_before_it_wrote_its_settings_it_goes_on(igpt, tmp_path: Path) -> None:
    (tmp_path / "out" / ".shards").mkdir(parents=True)
    call = ("prepare", "--data", "digits", "--size", 8, "--workers", 1, "--out", tmp_path / "out")
    assert igpt(*call).status == 0
    (tmp_path / "out" / ".shards" / "settings.json").write_text("{")
    assert_mistake(igpt(*call), "settings.json is not a JSON file")


def test_tokens_are_refused(igpt, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.zeros((4, 64), dtype=np.int64))
    result = igpt(
        "prepare", "--data", tmp_path / "tokens.npy", "--size", 8, "--out", tmp_path / "o"
    )
    assert_mistake(result, "encoded already")
