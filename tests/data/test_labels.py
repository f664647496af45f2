"""Labelled splits and small subsets of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import write_classes
from igpt.config import DataConfig, UserError
from igpt.data.decode import decode_all, imagenet_centre
from igpt.data.labels import few_labels, open_large_task, open_task, open_training
from igpt.data.loader import PictureLoader
from igpt.data.sources import open_source
from igpt.data.splits import training_splits
from igpt.order import Codec, Encoded
from igpt.palette import Palette

CONFIG = DataConfig(source="", image_size=8)
CODEC = Codec(Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)), "raster", 8)


def save(path: Path, labels: np.ndarray, test_labels: np.ndarray | None = None) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images}
    np.savez(path, **arrays, **({} if test_labels is None else {"y_test": test_labels}))
    return path


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), per_class=st.integers(1, 5), n_classes=st.integers(2, 6))
def test_few_labels_are_as_many_of_each_class_and_a_function_of_the_seed(
    seed: int, per_class: int, n_classes: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(n_classes), 9))
    chosen = few_labels(labels, per_class, seed)
    assert np.bincount(labels[chosen]).tolist() == [per_class] * n_classes
    assert len(set(chosen)) == len(chosen)
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, few_labels(labels, per_class, seed))
    more = few_labels(labels, per_class + 1, seed)
    assert set(chosen) <= set(more)  # a curve over sizes adds labels, it does not change them


def test_subsets_of_other_seeds_are_others() -> None:
    labels = np.repeat(np.arange(3), 100)
    assert not np.array_equal(few_labels(labels, 5, 0), few_labels(labels, 5, 1))


def test_a_task_has_three_splits_that_do_not_overlap() -> None:
    task = open_task(open_source("digits"), DataConfig(), 8, seed=0)
    assert (len(task.train), len(task.validation), len(task.test)) == (1350, 150, 297)
    assert task.train.n_classes == 10
    splits = (task.train, task.validation, task.test)
    parts = [{image.tobytes() for image in part.images} for part in splits]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1797


def test_of_a_single_split_three_parts_are_made_and_the_test_part_was_never_trained_on(
    tmp_path: Path,
) -> None:
    """Pretraining holds out what is tested later; what chooses among probes is another part."""
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=images, y=np.arange(50) % 2)
    source = open_source(str(tmp_path / "d.npz"))
    _, held_out = training_splits(source, CONFIG, seed=3)
    of_the_run = replace(CONFIG, split_pictures=50)
    with pytest.warns(UserWarning, match=r"the 5 pictures that training held out of 'train'"):
        task = open_task(source, of_the_run, 8, seed=3)
    assert np.array_equal(task.test.images, decode_all(held_out, 8).images)
    parts = [{image.tobytes() for image in part.images} for part in
             (task.train, task.validation, task.test)]  # fmt: skip
    assert [len(part) for part in parts] == [41, 4, 5]
    assert len(set.union(*parts)) == 50
    with pytest.warns(UserWarning, match="5 pictures of 'train' are held out for it"):
        train, validation = open_training(source, CONFIG, seed=3)
    assert np.array_equal(train.labels, task.train.labels)
    assert len(validation) == 4
    theirs = replace(CONFIG, test_split="validation")  # of a recipe that was made for other data
    with pytest.warns(UserWarning, match="held out"):
        same, chosen = open_training(source, theirs, seed=3)
    assert np.array_equal(same.labels, train.labels)
    assert len(chosen) == 4


def test_pictures_without_a_label_are_left_out_and_said(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    holes = np.where(np.arange(40) < 6, -1, labels)
    source = open_source(str(save(tmp_path / "d.npz", holes, labels)))
    with pytest.warns(UserWarning, match="left out"):
        task = open_task(source, CONFIG, 8, seed=0)
    assert len(task.train) + len(task.validation) == 34
    assert (task.train.labels >= 0).all()
    with pytest.warns(UserWarning, match="left out"):
        large = open_large_task(source, CONFIG, CODEC, seed=0)
    for ours, theirs in ((large.train, task.train), (large.validation, task.validation)):
        assert np.array_equal(ours.labels, theirs.labels)


def test_classes_that_nothing_is_measured_on_are_told_of(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    source = open_source(str(save(tmp_path / "d.npz", labels, labels % 2)))
    with pytest.warns(UserWarning, match="test split: no picture is of class 2, 3, so what"):
        open_task(source, CONFIG, 8, seed=0)
    source = open_source(str(save(tmp_path / "e.npz", labels % 2, labels)))
    with pytest.warns(UserWarning, match="no picture to train on is of class 2, so none is taken"):
        open_task(source, CONFIG, 8, seed=0)


def test_a_large_task_is_the_same_one_and_its_training_pictures_stay_on_the_disk(
    tmp_path: Path,
) -> None:
    """Of a run trained on random crops: what is not trained on is cropped in the middle."""
    write_classes(tmp_path, 20, 6)
    broken = tmp_path / "test" / "dark" / "2.png"
    broken.write_bytes(b"")
    source = open_source(str(tmp_path))
    config = DataConfig(augmentation="imagenet", validation_fraction=0.2)
    with pytest.warns(UserWarning, match="skipped 1 unreadable"):
        small = open_task(source, config, 8, seed=0)
    with pytest.warns(UserWarning, match="skipped 1 unreadable"):
        large = open_large_task(source, config, CODEC, seed=0)
    for ours, theirs in ((large.validation, small.validation), (large.test, small.test)):
        assert isinstance(ours.images, Encoded)
        assert np.array_equal(ours.images.tokens, CODEC.raster_tokens(theirs.images))
        assert np.array_equal(ours.labels, theirs.labels)
    assert len(large.test) == 5
    plain = decode_all(large.train.pictures, 8, imagenet_centre).images
    assert np.array_equal(large.train.decode(8).images, plain)
    batch = large.train.loader(CODEC, 16, 0, "none").batch(0, range(16))
    assert sorted(batch.tokens.tolist()) == sorted(CODEC.encode(plain).tolist())
    for augmentation in ("none", "flip", "cifar", "imagenet"):
        assert isinstance(large.train.loader(CODEC, 16, 0, augmentation), PictureLoader)


def test_tokens_give_the_batches_of_the_pictures_they_were_but_no_crops(tmp_path: Path) -> None:
    rng, labels = np.random.default_rng(0), np.arange(40) % 4
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    tokens = CODEC.raster_tokens(images)
    np.savez(tmp_path / "p.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    np.savez(tmp_path / "t.npz", x_train=tokens, y_train=labels, x_test=tokens, y_test=labels)
    pictures, encoded = (
        open_large_task(open_source(str(tmp_path / name)), CONFIG, CODEC, seed=0).train
        for name in ("p.npz", "t.npz")
    )
    for augmentation in ("none", "flip", "cifar"):
        ours, theirs = (
            part.loader(CODEC, 7, 3, augmentation).batch(5, range(7))
            for part in (encoded, pictures)
        )
        assert ours.tokens.equal(theirs.tokens)
        assert ours.labels is not None
        assert theirs.labels is not None
        assert ours.labels.equal(theirs.labels)
    assert isinstance(pictures.loader(CODEC, 7, 3, "imagenet"), PictureLoader)
    with pytest.raises(UserError, match="imagenet crops pictures, and the data are tokens"):
        encoded.loader(CODEC, 7, 3, "imagenet")


@pytest.mark.parametrize(
    ("labels", "test_labels", "complaint"),
    [
        (np.arange(40) % 4, None, "test split: the pictures have no labels"),
        (np.full(40, -1), np.zeros(40, int), "train split: none of the 36 pictures has a label"),
        (np.zeros(40, int), np.zeros(40, int), "of one class"),
        (np.arange(40) + 10**6, np.zeros(40, int), "no class number"),
        (np.arange(40) % 2 * 2 - 1, np.ones(40, int), "of the labels -1 and 1 the first means"),
    ],
)
def test_labels_that_teach_nothing_are_refused(
    tmp_path: Path, labels: np.ndarray, test_labels: np.ndarray | None, complaint: str
) -> None:
    source = open_source(str(save(tmp_path / "d.npz", labels, test_labels)))
    with pytest.raises(UserError, match=complaint):
        open_task(source, CONFIG, 8, seed=0)
    with pytest.raises(UserError, match=complaint):
        open_large_task(source, CONFIG, CODEC, seed=0)


def test_a_class_with_too_few_is_named() -> None:
    with pytest.raises(UserError, match="class 2 has 1 labelled pictures to train on, 3 were"):
        few_labels(np.array([0, 0, 0, 2, 1, 1, 1]), 3, seed=0)
