"""Colours to tokens and back."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from igpt.config import UserError
from igpt.kernels.palette import color_cells
from igpt.palette import Palette

pytestmark = pytest.mark.usefixtures("two_threads")


def brute_force(clusters: npt.NDArray[np.float32], images: npt.NDArray[np.uint8]) -> npt.NDArray:
    """The nearest cluster by definition: float64, ties to the lowest index."""
    colors = images.reshape(-1, 1, 3) / 127.5 - 1.0
    distance = ((colors - clusters.astype(np.float64)) ** 2).sum(-1)
    return distance.argmin(1).reshape(len(images), -1)


def random_images(seed: int, n: int = 2, side: int = 16) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 300), grey=st.booleans())
def test_encoding_is_the_exact_nearest_cluster(seed: int, k: int, grey: bool) -> None:
    clusters = np.random.default_rng(seed).uniform(-1, 1, (k, 3)).astype(np.float32)
    images = random_images(seed)
    if grey:
        images[..., 1:] = images[..., :1]
    assert np.array_equal(Palette(clusters).encode(images), brute_force(clusters, images))


def test_pictures_that_several_threads_encode_are_the_exact_nearest_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clusters = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    images = random_images(1, n=40) // 4  # of few cells, which take long to compute
    monkeypatch.setattr("igpt.palette.PART", 1000)  # 10,240 pixels in 11 parts
    monkeypatch.setattr("igpt.palette.GATHER", 300)
    assert np.array_equal(Palette(clusters).encode(images), brute_force(clusters, images))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 6, 60, 700]))
def test_sets_of_known_and_of_new_colours_are_the_exact_nearest_clusters(seed: int, k: int) -> None:
    # Clusters so near to each other that many cells of 4x4x4 colours have more than three of them.
    clusters = np.random.default_rng(seed).uniform(-1, -0.8, (k, 3)).astype(np.float32)
    palette, images = Palette(clusters), random_images(seed, n=4, side=8) // 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("igpt.palette.PART", 200)  # by the kernel, from 201 pixels on
        new = np.concatenate([images, 255 - images])
        for pictures in (images[:1], images, images, new, new, new[..., ::-1], new[:, ::-1]):
            assert np.array_equal(palette.encode(pictures), brute_force(clusters, pictures))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), named=st.integers(1, 8), n=st.integers(0, 3000))
def test_the_kernel_looks_up_what_the_table_holds(seed: int, named: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.full(1 << 24, 65535, np.uint16)
    cube = table.reshape(256, 256, 256)[16:32, 240:, :16]
    cube[:] = rng.integers(0, 65535, named)[rng.integers(0, named, (16, 16, 16))]
    cells = color_cells(table)
    if cells is None:
        pytest.skip("no C++ compiler")
    cells.fill(16 << 16 | 240 << 8, 16)
    colors = rng.integers([16, 240, 0], [32, 256, 16], (n, 3)).astype(np.uint8)
    tokens = np.empty(n, np.uint16)
    assert cells.look_up(colors, tokens)
    red, green, blue = colors.T.astype(np.int64)
    assert np.array_equal(tokens, table[red << 16 | green << 8 | blue])
    if n:
        colors[rng.integers(n)] = 0, 0, 0  # is not in the table
        assert not cells.look_up(colors, tokens)
        assert np.array_equal(tokens == 65535, (colors == 0).all(1))


def test_ties_go_to_the_lowest_index() -> None:
    palette = Palette(np.array([[1, 1, 1], [-1, -1, -1], [1, 1, 1]], np.float32))
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    assert palette.encode(images).tolist() == [[0, 0, 0, 0]]
    between = Palette(np.array([[10.0], [-10.0]], np.float32).repeat(3, 1) / 127.5 + 0.0)
    # 127.5 lies in the middle but is no uint8 value; 127 and 128 are equally far from it.
    assert between.encode(np.array([[[[127] * 3, [128] * 3]]], np.uint8)).tolist() == [[1, 0]]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 40))
def test_a_fitted_palette_has_distinct_colours_that_are_all_used(seed: int, k: int) -> None:
    images = random_images(seed)
    palette = Palette.fit(images, k, seed=seed)
    assert len(np.unique(palette.clusters, axis=0)) == palette.n_colors == k
    assert set(np.unique(palette.encode(images))) == set(range(k))


def test_fitting_is_a_function_of_the_seed_and_better_than_a_random_palette() -> None:
    images = random_images(3, n=4)
    palette = Palette.fit(images, 32, seed=1)
    assert palette == Palette.fit(images, 32, seed=1)
    some = images.reshape(-1, 3)[:32] / 127.5 - 1
    assert palette.psnr(images) > Palette(some.astype(np.float32)).psnr(images) + 1


@pytest.mark.parametrize("coarse", [4, 32])
def test_fitting_in_parts_is_fitting_at_once_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, coarse: int
) -> None:
    images = random_images(5, n=3) // coarse  # of few cells, which take long to compute
    whole = Palette.fit(images, 5)
    expected = (whole.decode(whole.encode(images)).astype(float) - images) ** 2
    monkeypatch.setattr("igpt.palette.PART", 100)  # 768 pixels in 8 parts
    parts = Palette.fit(images, 5)
    assert np.array_equal(parts.clusters, whole.clusters)
    assert parts.psnr(images) == 10 * np.log10(255**2 / expected.mean())


def test_how_near_a_palette_comes_takes_a_part_of_the_pictures_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = random_images(6, n=1000) // 16
    palette = Palette.fit(images, 16)
    monkeypatch.setattr("igpt.palette.PART", 1000)
    tracemalloc.start()
    palette.psnr(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes / 2


def test_many_colours_are_fitted_in_bins_and_hardly_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(4, n=4, side=128)  # 65,000 distinct colours
    binned = Palette.fit(images, 16).psnr(images)
    monkeypatch.setattr("igpt.palette.EXACT", 10**6)
    exact = Palette.fit(images, 16).psnr(images)
    assert binned != exact  # else the bins were not taken
    assert binned > exact - 0.1


def test_many_colours_in_fewer_bins_than_clusters_are_fitted_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("igpt.palette.EXACT", 500)
    steps = np.stack(np.meshgrid(*[np.arange(8)] * 3), axis=-1)  # 512 colours in 2x2x2 bins
    images = steps.reshape(1, 32, 16, 3).astype(np.uint8)
    for k in (8, 9, 30):
        assert Palette.fit(images, k).n_colors == k


def test_fewer_colours_than_asked_are_kept_exactly_and_said() -> None:
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[0, 0, 0] = (200, 10, 3)
    with pytest.warns(UserWarning, match="2 colours, fewer than the 512"):
        palette = Palette.fit(images)
    assert palette.n_colors == 2
    assert np.array_equal(palette.decode(palette.encode(images)), images)
    assert palette.psnr(images) == float("inf")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 60))
def test_what_was_decoded_encodes_to_the_nearest_of_its_own_colour(seed: int, k: int) -> None:
    palette = Palette.fit(random_images(seed), k)
    tokens = np.random.default_rng(seed).integers(0, k, (3, 25))
    pixels = palette.decode(tokens)
    assert pixels.shape == (3, 5, 5, 3)
    assert np.array_equal(palette.decode(palette.encode(pixels)), pixels)


def test_white_does_not_wrap_to_black() -> None:
    palette = Palette(np.array([[1.0005, 1.0, 1.0], [-1.0005, -1, -1]], np.float32))
    assert palette.decode(np.array([[0], [1]])).reshape(2, 3).tolist() == [[255] * 3, [0] * 3]


def test_a_palette_survives_the_disk_to_the_bit(tmp_path: Path) -> None:
    palette = Palette.fit(random_images(0), 20)
    palette.save(tmp_path / "new" / "palette.npy")
    assert Palette.load(tmp_path / "new" / "palette.npy") == palette
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["palette.npy"]


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((4, 2), np.float32), "shape"),
        (np.zeros((0, 3), np.float32), "shape"),
        (np.full((4, 3), 1.5, np.float32), "lie in"),
        (np.full((4, 3), np.nan, np.float32), "lie in"),
        (np.zeros((4, 3), np.uint8), "floats"),
        (np.array([{"a": 1}], dtype=object), "not a .npy"),
    ],
)
def test_a_file_that_is_no_palette_is_refused(
    tmp_path: Path, array: npt.NDArray, complaint: str
) -> None:
    path = tmp_path / "clusters.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=complaint) as error:
        Palette.load(path)
    assert "clusters.npy" in str(error.value)


def test_a_truncated_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clusters.npy"
    Palette.fit(random_images(0), 20).save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"clusters.npy"):
        Palette.load(path)
    with pytest.raises(UserError, match="no palette file"):
        Palette.load(tmp_path / "nothing.npy")


def test_a_token_outside_the_palette_is_named() -> None:
    palette = Palette.fit(random_images(0), 20)
    for bad in (20, -1):
        with pytest.raises(UserError, match=f"token {bad} is outside the palette of 20"):
            palette.decode(np.array([[0, bad, 1, 2]]))
    with pytest.raises(UserError, match="not a square picture"):
        palette.decode(np.zeros((1, 5), int))


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3))])
def test_pictures_of_another_shape_or_type_are_refused(images: npt.NDArray) -> None:
    with pytest.raises(UserError, match="uint8"):
        Palette(np.zeros((1, 3), np.float32)).encode(images)


def test_a_list_of_pictures_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"must be an array \[B, H, W, 3\], got a list"):
        Palette.fit([Image.new("RGB", (4, 4))], 2)  # type: ignore[arg-type]


def test_no_pictures_have_no_tokens_and_no_palette() -> None:
    none = np.zeros((0, 5, 4, 3), np.uint8)
    tokens = Palette(np.zeros((1, 3), np.float32)).encode(none)
    assert (tokens.shape, tokens.dtype) == ((0, 20), np.uint16)
    with pytest.raises(UserError, match="no pictures given"):
        Palette.fit(none)
    with pytest.raises(UserError, match="no pictures given"):
        Palette(np.zeros((1, 3), np.float32)).psnr(none)


FORKED = """
import os, signal
import numpy as np, torch
from igpt.palette import Palette
torch.set_num_threads(2)
palette = Palette(np.linspace(-1, 1, 15).reshape(5, 3))
pictures = np.zeros((1100, 32, 32, 3), dtype=np.uint8)  # more than a million pixels
palette.encode(pictures)
expected = palette.encode(pictures)  # colours that are known, by several threads
if os.fork() == 0:
    signal.alarm(60)
    os._exit(0 if np.array_equal(palette.encode(pictures), expected) else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_that_was_forked_encodes_too() -> None:
    """As `datasets.map` with several processes does; OpenMP's threads stay behind."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("exact", [50_000, 2], ids=["of colours", "of bins"])
def test_a_palette_lies_where_most_pixels_are(monkeypatch: pytest.MonkeyPatch, exact: int) -> None:
    monkeypatch.setattr("igpt.palette.EXACT", exact)
    greys = np.repeat([0, 100, 110], [1000, 10, 1000]).astype(np.uint8)
    palette = Palette.fit(greys.reshape(1, 1, -1, 1).repeat(3, axis=-1), 2)
    assert palette.colors.tolist() == [[0] * 3, [110] * 3]  # unweighted: 105


def test_clusters_lie_from_dark_to_light() -> None:
    images = np.array([(0, 200, 0), (255, 0, 0)], np.uint8).reshape(1, 1, 2, 3)
    assert Palette.fit(images, 2).colors.tolist() == [[255, 0, 0], [0, 200, 0]]
    luminance = Palette.fit(random_images(3, n=4), 30).clusters @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance) >= 0).all()
