"""A set's features on the disk are those of the pipeline, whatever is skipped or goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import several
from conftest import silent
from igpt.config import ModelConfig, UserError
from igpt.data import decode
from igpt.data.pictures import Pictures, UnreadablePicture, open_files
from igpt.order import Codec
from igpt.palette import Palette
from igpt.pipeline import Pipeline
from igpt.probe import export
from igpt.probe.export import Exported, export_features
from igpt.probe.linear import FeatureTransform
from test_model import random_model

N, PART = 75, 10
BROKEN = [0, 7, *range(20, 30), 74]  # the third part holds no readable picture
KEPT = np.setdiff1d(np.arange(N), BROKEN)
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 9, 7, 3), dtype=np.uint8)
LABELS = np.where(np.arange(N) % 9 == 0, -1, np.arange(N) % 4)


def pipeline(causal: bool = True) -> Pipeline:
    shape = ModelConfig(3, 2, 8, vocab_size=11, n_positions=36, causal=causal)
    clusters = np.random.default_rng(1).uniform(-1, 1, (11, 3)).astype(np.float32)
    return Pipeline(random_model(shape), Codec(Palette(clusters), "snake", 6))


def open_image(i: int) -> Image.Image:
    if i in BROKEN:
        raise UnreadablePicture(f"p{i}: broken")
    return Image.fromarray(PIXELS[i])


PICTURES = Pictures(N, open_image, lambda i: f"p{i}", LABELS)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of what was decoded at once, by small parts."""
    lengths, at_once = list[int](), decode.decode_readable

    def spy(pictures: Pictures, *args: object) -> object:
        lengths.append(len(pictures))
        return at_once(pictures, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "PART", PART)
    monkeypatch.setattr(decode, "decode_readable", spy)
    return lengths


def write(
    p: Pipeline, out: Path, pictures: Pictures = PICTURES, *, layer: str = "all", pool: str = "mean"
) -> Exported:
    return export_features(p.model, p.codec, pictures, out, layer=layer, pool=pool, say=silent)


def columns(path: Path) -> dict[str, np.ndarray]:
    """A .parquet's columns as arrays."""
    table = pq.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@pytest.mark.usefixtures("on_processor")
@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("causal", [True, False], ids=["ar", "bert"])
@pytest.mark.parametrize(
    ("layer", "pool"), [("all", "mean"), ("2", "last"), ("1:3", "grid:2"), ("0", "flatten")]
)
def test_both_files_hold_what_the_pipeline_gives_at_once(
    seen: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    causal: bool,
    layer: str,
    pool: str,
) -> None:
    monkeypatch.setattr(export, "ROW_GROUP", 1)
    p = pipeline(causal)
    expected = p.features(PIXELS[KEPT], layer, pool)
    npz, parquet = tmp_path / "new" / "f.npz", tmp_path / "f.PARQUET"
    assert write(p, npz, layer=layer, pool=pool) == Exported(expected.shape, len(BROKEN))
    assert write(p, parquet, layer=layer, pool=pool) == Exported(expected.shape, len(BROKEN))
    assert max(seen) == PART
    assert sum(seen) == 2 * N

    with np.load(npz, allow_pickle=False) as members:
        arrays = dict(members)
    assert list(arrays) == ["features", "names", "layers", "labels"]
    assert arrays["features"].dtype == np.float32
    assert np.array_equal(arrays["features"], expected)
    assert np.array_equal(arrays["labels"], LABELS[KEPT])
    assert arrays["labels"].dtype == np.int64
    assert arrays["names"].tolist() == [f"p{i}" for i in KEPT]
    layers = {"all": [0, 1, 2, 3], "2": [2], "1:3": [1, 2, 3], "0": [0]}
    assert arrays["layers"].tolist() == layers[layer]

    assert pq.ParquetFile(parquet).num_row_groups == 2  # a batch each
    table = columns(parquet)
    assert np.array_equal(table.pop("label"), LABELS[KEPT])
    assert np.array_equal(table.pop("name"), arrays["names"])
    if layer == "all":
        assert list(table) == ["layer_0", "layer_1", "layer_2", "layer_3"]
        table = {"features": np.stack(list(table.values()), axis=1)}
    assert np.array_equal(table["features"], expected)


@pytest.mark.parametrize("layer", ["all", "1:2"])
def test_principal_components_are_those_of_the_known_pictures(tmp_path: Path, layer: str) -> None:
    p, known = pipeline(), PICTURES.select(KEPT[:40])
    for name in ("f.npz", "f.parquet"):
        export_features(
            p.model,
            p.codec,
            PICTURES.select(KEPT[40:]),
            tmp_path / name,
            layer=layer,
            pool="grid:2",
            components=5,
            known=known,
            say=silent,
        )
    features = p.features(PIXELS[KEPT], layer, "grid:2")
    stacked = features if layer == "all" else features[:, None]
    transforms = [FeatureTransform.fit(stacked[:40, i], 5) for i in range(stacked.shape[1])]
    expected = np.stack(
        [transform(stacked[40:, i]) for i, transform in enumerate(transforms)], axis=1
    )
    got = np.load(tmp_path / "f.npz")["features"]
    assert got.shape == ((len(KEPT) - 40, 4, 5) if layer == "all" else (len(KEPT) - 40, 5))
    assert got.reshape(expected.shape) == pytest.approx(expected, abs=1e-4)
    table = columns(tmp_path / "f.parquet")
    names = [name for name in table if name not in ("label", "name")]
    assert np.array_equal(
        np.stack([table[name] for name in names], axis=1), got.reshape(expected.shape)
    )


def test_names_of_classes_are_kept_beside_their_numbers(tmp_path: Path) -> None:
    names = ("cat", "dog", "emu")
    named = replace(PICTURES.select(KEPT), class_names=names)
    write(pipeline(), tmp_path / "f.npz", named)
    write(pipeline(), tmp_path / "f.parquet", named)
    assert np.load(tmp_path / "f.npz")["class_names"].tolist() == [*names]
    about = pq.read_schema(tmp_path / "f.parquet").metadata
    assert json.loads(about[b"class_names"]) == [*names]


def test_without_labels_there_is_no_such_column(tmp_path: Path) -> None:
    bare = replace(PICTURES.select(KEPT), labels=None)
    write(pipeline(), tmp_path / "f.npz", bare)
    write(pipeline(), tmp_path / "f.parquet", bare)
    assert set(np.load(tmp_path / "f.npz", allow_pickle=False)) == {"features", "names", "layers"}
    assert set(columns(tmp_path / "f.parquet")) == {*(f"layer_{i}" for i in range(4)), "name"}


def test_a_parquet_column_is_a_list_of_fixed_size(tmp_path: Path) -> None:
    write(pipeline(), tmp_path / "f.parquet", PICTURES.select(KEPT), layer="1")
    kind = pq.read_schema(tmp_path / "f.parquet").field("features").type
    assert str(kind).startswith("fixed_size_list")
    assert kind.list_size == 8


def test_what_is_skipped_is_named(seen: list[int], tmp_path: Path) -> None:
    named = "skipped 13 unreadable pictures: p0: broken; p7: broken; p20: broken and 10 more"
    with pytest.warns(UserWarning, match=named) as warned:
        write(pipeline(), tmp_path / "f.npz")
    assert len(warned) == 1  # of all parts


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_set_of_which_nothing_is_readable_is_refused(seen: list[int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can be read: p20: broken"):
        write(pipeline(), tmp_path / "f.npz", PICTURES.select(np.arange(20, 30).repeat(2)))
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_text_is_written_as_one(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.png")
    Image.fromarray(PIXELS[0]).save(odd)
    for name in ("f.npz", "f.parquet"):
        write(pipeline(), tmp_path / name, open_files([odd]), layer="0")
    shown = [str(tmp_path / "\\udcff.png")]
    assert np.load(tmp_path / "f.npz")["names"].tolist() == shown
    assert columns(tmp_path / "f.parquet")["name"].tolist() == shown


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_memory_does_not_grow_with_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(decode, "PART", 64)
    monkeypatch.setattr(export, "PIECE", 2**16)
    monkeypatch.setattr(export, "ROW_GROUP", 2**16)
    p, picture = pipeline(), Image.fromarray(PIXELS[0])

    def peak(count: int) -> int:
        pictures = Pictures(count, lambda _i: picture, lambda _i: "p")
        tracemalloc.start()
        write(p, tmp_path / name, pictures, pool="flatten")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(64)  # what is imported and cached at the first time
    row = 4 * 36 * 8 * 4  # bytes
    assert peak(1280) - peak(128) < (1280 - 128) * row / 10


@pytest.mark.parametrize(
    ("name", "words", "complaint"),
    [
        ("f.npz", {"layer": "4"}, "a layer of 0 to 3"),
        ("f.npz", {"layer": "2:1"}, "a layer of 0 to 3"),
        ("f.parquet", {"pool": "grid:7"}, "grid:G with G up to 6"),
        ("f.npy", {}, "expected .npz or .parquet"),
        ("f", {}, "expected .npz or .parquet"),
    ],
)
def test_what_there_is_not_is_refused_before_anything_is_decoded(
    seen: list[int], tmp_path: Path, name: str, words: dict[str, str], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        write(pipeline(), tmp_path / name, **words)
    assert not seen
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_told_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, usage = Pictures(10**13, open_image, lambda i: f"p{i}"), SimpleNamespace(free=123_400_000)
    monkeypatch.setattr("igpt.probe.export.shutil.disk_usage", lambda _folder: usage)
    told = r"take 2,560,000,000\.0 MB while they are written, and 123\.4 MB are free there"
    with pytest.raises(UserError, match=told):
        write(pipeline(), tmp_path / "new" / "f.npz", many)
    with pytest.raises(UserError, match=r"take 1,280,000,000.0 MB while"):
        write(pipeline(), tmp_path / "f.parquet", many)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("on_processor")
def test_a_file_that_the_disk_does_not_take_leaves_nothing_but_the_old_one(
    tmp_path: Path, tiny_run: Path
) -> None:
    rows = 20 * 64 * 16 * 4  # bytes of 20 pictures' features
    # A limit of a file's size that stops the rows of a .npz, then its zip file, then a .parquet.
    tries = [("f.npz", rows // 2), ("f.npz", rows + 50), ("f.parquet", rows // 2)]
    words = [str(tiny_run), "--layer", "0", "--pool", "flatten", "--limit", "20"]
    program = f"""
import resource
from igpt.cli import main
for name, limit in {tries}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        main(["features", *{words}, "--out", {str(tmp_path)!r} + "/" + name])
    except SystemExit as stop:
        print(stop.code)
"""
    for name, _ in tries:
        (tmp_path / name).write_bytes(b"the old one")
    done = several.script(program)
    assert done.out.split() == ["2", "2", "2"], done.err
    errors = [line for line in done.err.splitlines() if "error" in line.lower()]
    assert len(errors) == 3
    for (name, _), error in zip(tries, errors, strict=True):
        assert f"cannot write {tmp_path / name}: " in error
        assert "File too large" in error
    assert "Traceback" not in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"f.npz", "f.parquet"}
    assert all(path.read_bytes() == b"the old one" for path in tmp_path.iterdir())


def test_a_full_disk_stops_it_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        # Room for the features themselves, and not for names like these.
        pictures = replace(PICTURES.select(KEPT), name=lambda i: PIXELS[: 9 * i].tobytes().hex())
        for name in ("f.npz", "f.parquet"):
            with pytest.raises(UserError, match="No space left"):
                write(pipeline(), disk / name, pictures)
            assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_files_of_a_folder_are_named_by_their_paths(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(PIXELS[i]).save(tmp_path / f"{i}.png")
    write(pipeline(), tmp_path / "f.npz", open_files([tmp_path]))
    names = np.load(tmp_path / "f.npz", allow_pickle=False)["names"]
    assert names.tolist() == [str(tmp_path / f"{i}.png") for i in range(3)]
