"""Streams: every picture once an epoch, resumed to the bit, never far ahead, mistakes in a line."""

from __future__ import annotations

import functools
import http.server
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from conftest import TINY, assert_mistake, curve, picture_bytes
from igpt.config import DataConfig
from igpt.data.decode import decode_all, fit_square
from igpt.data.shards import ROWS, Stream, next_pictures, open_streams
from igpt.data.sources import open_data
from igpt.data.splits import pictures_to_test, training_splits
from igpt.data.stream import StreamLoader
from igpt.order import Codec
from numbered_shards import GREYS, add, picture, write_shards, write_tar

SIZE = 4
# An epoch of 30 pictures, less 4 that are held out, in 3 steps and a bit.
STREAM = ["--streaming", "data.validation_pictures=4", "data.shuffle_buffer=7", "--size", SIZE]


def loader(source: object, rank: int = 0, processes: int = 1, **changes: Any) -> StreamLoader:
    options: dict[str, Any] = {"shuffle_buffer": 7, "seed": 3, "augmentation": "none", **changes}
    train, _ = open_streams(DataConfig(source=str(source), streaming=True))
    return StreamLoader(
        train.share(rank, processes), frozenset(), Codec(GREYS, "raster", SIZE), **options
    )


def numbers(batches: StreamLoader, count: int, step: int = 0) -> list[int]:
    """The next `count` pictures."""
    return batches.batch(step, range(count)).tokens[:, 0].tolist()


def epochs(batches: StreamLoader, count: int) -> list[list[int]]:
    """The pictures of the next `count` epochs, in the order in which they are handed out."""
    found: list[list[int]] = [[] for _ in range(count)]
    while True:
        batch = batches.batch(0, range(1))
        assert batch.state is not None
        if batch.state["epoch"] == count:
            batches.close()
            return found
        found[batch.state["epoch"]].append(int(batch.tokens[0, 0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures as `tar` and as `parquet`, in four shards of unequal sizes."""
    path = tmp_path_factory.mktemp("shards")
    for kind in ("tar", "parquet"):
        write_shards(path / kind, kind, (8, 8, 8, 6))
    (path / "random").mkdir()  # pictures of which no two views are alike
    for shard in range(4):
        with tarfile.open(path / "random" / f"{shard}.tar", "w") as archive:
            for i in range(8 * shard, min(8 * shard + 8, 30)):
                add(archive, f"{i:04}.png", picture_bytes(i))
    return path


# --- epochs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_epoch_hands_out_every_picture_once_over_all_processes(
    folder: Path, kind: str, processes: int
) -> None:
    """Whole shards for 2 and 4 processes; every third picture for 3."""
    shares = [epochs(loader(folder / kind, rank, processes), 3) for rank in range(processes)]
    together = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    for epoch in together:
        assert sorted(epoch) == list(range(30))
    assert together[0] != together[1] != together[2]


def test_shards_and_their_pictures_come_in_another_order_in_every_epoch(folder: Path) -> None:
    found = epochs(loader(folder / "tar", shuffle_buffer=8), 6)
    shards = {tuple(dict.fromkeys(number // 8 for number in epoch)) for epoch in found}
    assert len(shards) > 2
    assert all(epoch != sorted(epoch) for epoch in found)


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "processes"), [(0, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize(
    ("kind", "augmentation"),
    [("tar", "none"), ("parquet", "none"), ("random", "cifar"), ("random", "imagenet")],
)
def test_a_loader_goes_on_from_the_state_that_any_batch_came_with(
    folder: Path, kind: str, rank: int, processes: int, augmentation: str
) -> None:
    options = (folder / kind, rank, processes)
    undisturbed = loader(*options, augmentation=augmentation)
    rows = range(4 * rank, 4 * rank + 4)
    batches = [undisturbed.batch(step, rows) for step in range(20)]
    for done in (0, 1, 2, 6, 12):
        resumed = loader(*options, augmentation=augmentation)
        resumed.resume([json.loads(json.dumps(batches[done].state))] * processes)
        for step in range(done + 1, 20):
            assert resumed.batch(step, rows).tokens.equal(batches[step].tokens)
        resumed.close()
    undisturbed.close()


@pytest.mark.parametrize(
    ("augmentation", "least"), [("none", 1), ("flip", 2), ("cifar", 4), ("imagenet", 4)]
)
def test_a_picture_of_a_stream_is_seen_anew_in_every_epoch(
    tmp_path: Path, augmentation: str, least: int
) -> None:
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        add(archive, "0.png", picture_bytes(0))
    batches = loader(tmp_path / "one.tar", augmentation=augmentation)
    seen = {tuple(batches.batch(step, range(1)).tokens[0].tolist()) for step in range(12)}
    batches.close()
    assert len(seen) >= least
    assert (len(seen) == 1) == (augmentation == "none")


def test_on_another_number_of_processes_the_epoch_begins_again_and_says_so(folder: Path) -> None:
    before = loader(folder / "tar")
    state = [before.batch(step, range(20)).state for step in range(2)][-1]
    assert state is not None
    assert state["epoch"] == 1
    before.close()
    found = []
    for rank in range(2):
        after = loader(folder / "tar", rank, 2)
        with pytest.warns(UserWarning, match="read by 1 processes and is read by 2 now: its epoch"):
            after.resume([state])
        found += epochs(after, 2)[1]
    assert sorted(found) == list(range(30))


@pytest.mark.usefixtures("on_processor")
def test_a_run_that_goes_back_to_a_checkpoint_repeats_the_undisturbed_curve(
    igpt, folder: Path, tmp_path: Path
) -> None:
    for kind in ("tar", "parquet"):
        run = tmp_path / kind
        words = [*TINY, *STREAM, "--data", folder / kind, "--out", run]
        assert igpt("pretrain", "digits", *words).status == 0
        undisturbed = curve(run)
        assert len(undisturbed) == 15
        (run / "checkpoints/latest").write_text("step-00000008\n")
        assert igpt("pretrain", "--out", run, "--resume").status == 0
        assert curve(run) == undisturbed


def test_a_run_knows_its_shards_from_any_working_directory(
    igpt, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = [*TINY, *STREAM, "--data", "tar/*.tar", "--out", tmp_path / "run"]
    assert igpt("pretrain", "digits", *words).status == 0
    monkeypatch.chdir(tmp_path)
    resumed = igpt("pretrain", "--out", "run", "--resume")
    assert resumed.status == 0, resumed.err


# --- memory --------------------------------------------------------------------------------------


class Counted:
    """An endless stream of pictures that knows how many were read."""

    def __init__(self) -> None:
        self.read = 0

    def stream(self) -> Stream:
        rows = datasets.IterableDataset.from_generator(self._rows)
        return Stream("counted", rows, "image")

    def _rows(self) -> Iterator[dict[str, object]]:
        while True:
            self.read += 1
            yield {"image": {"bytes": picture(self.read % 256), "path": None}}

    def __reduce__(self) -> tuple[object, ...]:
        return Counted, ()  # the library takes a fingerprint of the generator


def test_reading_runs_one_block_ahead_and_waits() -> None:
    counted = Counted()
    codec = Codec(GREYS, "raster", SIZE)
    batches = StreamLoader(counted.stream(), frozenset(), codec, 300, 0, "none")
    assert counted.read == 0
    for step in range(9):
        batches.batch(step, range(100))
        blocks = -(-100 * (step + 1) // 300) + 1  # those handed out from, and the next
        deadline = time.monotonic() + 10
        while counted.read < 300 * blocks and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert counted.read == 300 * blocks
    batches.close()


def test_a_loader_that_is_closed_stops_reading() -> None:
    counted = Counted()
    codec = Codec(GREYS, "raster", SIZE)
    batches = StreamLoader(counted.stream(), frozenset(), codec, 100_000, 0, "none")

    def wait_for_a_batch() -> None:
        with suppress(Exception):
            batches.batch(0, range(1))

    waiting = threading.Thread(target=wait_for_a_batch)
    waiting.start()
    while not counted.read:
        time.sleep(0.01)
    batches.close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert counted.read < 100_000


# --- what is held out, and what is skipped -------------------------------------------------------


def test_the_first_pictures_are_held_out_of_every_epoch(folder: Path) -> None:
    train, validation = open_streams(DataConfig(source=str(folder / "tar"), streaming=True))
    assert validation is None
    held_out = next_pictures(train.read(), 5, SIZE, fit_square)
    assert held_out.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    codec = Codec(GREYS, "raster", SIZE)
    batches = StreamLoader(train, frozenset(held_out.digests), codec, 7, 0, "none")
    for epoch in epochs(batches, 2):
        assert sorted(epoch) == list(range(5, 30))


def test_a_validation_split_is_read_as_far_as_the_recipe_says(
    igpt, folder: Path, tmp_path: Path
) -> None:
    write_tar(tmp_path / "set/train-0.tar", range(20))
    write_tar(tmp_path / "set/validation-0.tar", range(100, 120), broken=(101,))
    write_tar(tmp_path / "set/test-0.tar", range(200, 220))
    config = DataConfig(source=str(tmp_path / "set"), streaming=True)
    _, validation = open_streams(config)
    assert validation is not None
    held_out = next_pictures(validation.read(), 5, SIZE, fit_square)
    assert held_out.images[:, 0, 0, 0].tolist() == [100, 102, 103, 104, 105]
    assert sorted(epochs(loader(tmp_path / "set"), 1)[0]) == list(range(20))
    words = [*TINY, *STREAM, "--data", tmp_path / "set", "--out", tmp_path / "run"]
    done = igpt("pretrain", "digits", *words)
    assert done.status == 0
    assert "4 pictures held out" in done.err
    assert done.err.count("0101.png") == 1


def test_unreadable_pictures_are_skipped_and_named(igpt, tmp_path: Path) -> None:
    write_tar(tmp_path / "set/a.tar", range(20), broken=(3, 14))
    words = [*TINY, *STREAM, "--data", tmp_path / "set", "--out", tmp_path / "run", "--json"]
    done = igpt("pretrain", "digits", *words)
    assert done.status == 0
    assert json.loads(done.out)["skipped"] == 2
    assert done.err.count("0003.png") == done.err.count("0014.png") == 1
    batches = loader(tmp_path / "set")
    with pytest.warns(UserWarning, match=r"skipped an unreadable picture: 0003\.png"):
        (epoch,) = epochs(batches, 1)
    assert sorted(epoch) == [n for n in range(20) if n not in (3, 14)]


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("why", ["held out", "unreadable"])
def test_reads_without_a_picture_to_train_on_are_passed_over(tmp_path: Path, why: str) -> None:
    """As the validation pictures of a stream are, which come before all others."""
    cut = 40 if why == "unreadable" else None
    passed = [picture(n % 256, size=5 + n // 256)[:cut] for n in range(2 * ROWS)]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, data in enumerate([*passed, *map(picture, range(20))]):
            add(archive, f"{number:04}.png", data)
    stream, _ = open_streams(DataConfig(source=str(tmp_path / "a.tar"), streaming=True))
    first = {row.digest for row in stream.read().rows(2 * ROWS)}
    held_out = frozenset(first if why == "held out" else ())
    batches = StreamLoader(stream, held_out, Codec(GREYS, "raster", SIZE), 2 * ROWS, 0, "none")
    assert sorted(epochs(batches, 1)[0]) == list(range(20))


# --- sources -------------------------------------------------------------------------------------


def test_globs_ranges_urls_and_folders_are_the_same_stream(folder: Path) -> None:
    tar = folder / "tar"
    specs = [tar, f"{tar}/*.tar", f"file://{tar}/*.tar", f"{tar}/train-{{000..003}}.tar"]
    first, *others = (numbers(loader(spec), 40) for spec in specs)
    assert all(other == first for other in others)


def test_folders_of_pictures_are_streams_too(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    assert sorted(epochs(loader(tmp_path), 1)[0]) == list(range(9))


def test_the_shards_that_prepare_writes_are_a_stream(igpt, tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / "from").mkdir(exist_ok=True)
        (tmp_path / "from" / f"{number:02}.png").write_bytes(picture(number, size=9))
    out = tmp_path / "shards"
    words = ("--data", tmp_path / "from", "--size", SIZE, "--shard-pictures", 10, "--out", out)
    assert igpt("prepare", *words, "--workers", 1).status == 0
    for epoch in epochs(loader(out), 2):
        assert sorted(epoch) == list(range(25))


@contextmanager
def serve(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler]) -> Iterator[str]:
    """The address of a web server with the files of a folder."""
    bound = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_port}"
        finally:
            served.shutdown()
            thread.join()


@pytest.mark.usefixtures("on_processor")
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_web_server_is_read_like_a_folder(igpt, folder: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads the web with aiohttp: igpt[remote]")
    curves = []
    with serve(folder, http.server.SimpleHTTPRequestHandler) as address:
        for name, source in (("far", f"{address}/{kind}/*.{kind}"), ("near", folder / kind)):
            words = [*TINY, *STREAM, "--data", source, "--out", tmp_path / name]
            done = igpt("pretrain", "digits", *words)
            assert done.status == 0, done.err
            curves.append(curve(tmp_path / name))
    assert curves[0] == curves[1]


# --- mistakes ------------------------------------------------------------------------------------


def test_a_truncated_shard_stops_the_run_in_one_line(igpt, tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"set/{n}.tar", range(20 * n, 20 * n + 20))
    whole = (tmp_path / "set/1.tar").read_bytes()
    (tmp_path / "set/1.tar").write_bytes(whole[: 11 * 1024 + 550])  # within the 12th picture
    words = [*TINY, *STREAM, "--data", tmp_path / "set", "--out", tmp_path / "run"]
    result = igpt("pretrain", "digits", *words)
    assert_mistake(result, "broke off after 0030.png: unexpected end of data")


def test_a_truncated_parquet_shard_is_one_line_too(igpt, tmp_path: Path) -> None:
    write_shards(tmp_path / "set", "parquet", (20, 20))
    last = tmp_path / "set/train-001.parquet"
    last.write_bytes(last.read_bytes()[:-100])
    words = [*TINY, *STREAM, "--data", tmp_path / "set", "--out", tmp_path / "run"]
    result = igpt("pretrain", "digits", *words)
    assert_mistake(result, "Parquet magic bytes not found in footer")


class BreaksOff(http.server.SimpleHTTPRequestHandler):
    """Closes the connection after the first 6,000 bytes of a file."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(6000))

    def log_message(self, *_args: object) -> None:
        pass


def test_a_connection_that_breaks_off_is_one_line_after_some_patience(
    igpt, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads the web with aiohttp: igpt[remote]")
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    with serve(folder, BreaksOff) as address:
        words = [*TINY, *STREAM, "--data", f"{address}/tar/*.tar", "--out", tmp_path / "run"]
        result = igpt("pretrain", "digits", *words)
    assert_mistake(result, "received 6000 of 10240 bytes")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path.mkdir(), "doesn't contain any data files"),
        (lambda path: write_tar(path / "a.tar", []), "no stream of pictures at"),
        (lambda path: write_tar(path / "a.tar", range(3)), "smaller data.validation_pictures"),
        (lambda path: write_tar(path / "a.tar", range(4)), "smaller data.validation_pictures"),
        (lambda path: write_tar(path / "a.tar", range(4), range(4)), "no picture can be read"),
        (lambda path: write_texts(path / "a.tar"), "expected one column of pictures"),
    ],
)
def test_a_stream_without_pictures_is_one_clear_line(
    igpt, tmp_path: Path, make: Callable[[Path], None], complaint: str
) -> None:
    make(tmp_path / "set")
    words = [*TINY, *STREAM, "--data", tmp_path / "set", "--out", tmp_path / "run"]
    assert_mistake(igpt("pretrain", "digits", *words), complaint)
    assert not (tmp_path / "run").exists()


def write_texts(path: Path) -> None:
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for number in range(4):
            add(archive, f"{number}.txt", b"no picture")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--data", "digits"], "no stream at 'digits'"),
        (["--data", "nowhere/*.tar"], f"no file {Path('nowhere/*.tar').resolve()}"),
        (["--data", "nowhere/{00..01}.tar"], f"no file {Path('nowhere/00.tar').resolve()}"),
        (["data.shuffle_buffer=0"], "data.shuffle_buffer must be at least 1"),
        (["--image-column", "photo"], "no column 'photo', only: image"),
        (["data.validation_split=dev"], "has no split 'dev', only: train"),
        (["data.train_split=test"], "split 'test' cannot be trained on"),
    ],
)
def test_mistakes_about_streams_are_one_clear_line(
    igpt, folder: Path, tmp_path: Path, words: list[str], complaint: str
) -> None:
    source = ["--data", folder / "parquet", *words]
    result = igpt("pretrain", "digits", *TINY, *STREAM, *source, "--out", tmp_path / "run")
    assert_mistake(result, complaint)
    assert not (tmp_path / "run").exists()


def test_only_pretraining_reads_a_stream(igpt, tmp_path: Path, tiny_run: Path) -> None:
    shards = ["--data", "s3://bucket/*.tar"]
    for words in (["eval", tiny_run], ["finetune", tiny_run, "--out", tmp_path / "classes"]):
        result = igpt(*words, *shards)
        assert_mistake(
            result, "for `igpt pretrain --streaming` and `igpt prepare`: give the folder"
        )


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder of 5 classes of 100 pictures each."""
    for i in range(500):
        path = tmp_path / "classes" / f"{i // 100}" / f"{i % 100:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i // 100))
    return tmp_path / "classes"


def streamed(folder: Path) -> list[str]:
    stream, _ = open_streams(DataConfig(source=str(folder), streaming=True))
    return [row.name for row in stream.read().rows(1000)]


def test_what_is_held_out_of_a_folder_of_classes_is_of_all_of_them(classes: Path) -> None:
    config = DataConfig(source=str(classes), streaming=True, validation_pictures=50)
    rest, held_out = training_splits(open_data(config), config, seed=0)
    names = streamed(classes)
    assert [held_out.name(i) for i in range(50)] == names[:50]
    assert [rest.name(i) for i in range(450)] == names[50:]
    assert len(set(names)) == 500
    for part in (names[:50], names[50:]):
        assert {Path(name).parent.name for name in part} == {"0", "1", "2", "3", "4"}


def test_the_order_of_a_streamed_folder_stays_where_it_is_moved_or_grows(classes: Path) -> None:
    before = [Path(name).relative_to(classes) for name in streamed(classes)]
    moved = classes.rename(classes.with_name("moved"))
    (moved / "0" / "new.png").write_bytes(picture(0))
    after = [Path(name).relative_to(moved) for name in streamed(moved)]
    after.remove(Path("0", "new.png"))
    assert after == before


@pytest.mark.parametrize("kind", ["tar", "parquet", "pictures"])
def test_what_a_stream_held_out_of_a_single_split_is_for_testing(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "pictures":
        for number in range(30):
            path = tmp_path / f"{number // 9}" / f"{number:02}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture(number))
        source = tmp_path
    else:
        source = folder / kind
    config = DataConfig(source=str(source), streaming=True, validation_pictures=4)
    train, _ = open_streams(config)
    held_out = next_pictures(train.read(), 4, SIZE, fit_square).images
    opened = open_data(config)
    with pytest.warns(UserWarning, match="no split 'test'"):
        tested = decode_all(pictures_to_test(opened, config, seed=0), SIZE).images
    assert np.array_equal(tested, held_out)
    learned, _ = training_splits(opened, config, seed=0)
    assert len(learned) == 26
