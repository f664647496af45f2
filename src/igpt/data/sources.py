"""Where pictures come from: every kind of `--data`, and how its splits are chosen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from igpt.config import DataConfig, UserError
from igpt.data.arrays import open_arrays, open_openai, openai_arrays
from igpt.data.hub import open_dataset
from igpt.data.pictures import Pictures, Source, array_pictures
from igpt.rng import numpy_rng

DIGITS_TEST = 297  # test pictures of scikit-learn's 1,797 digits, chosen by a fixed shuffle
VALIDATION_NAMES = ("validation", "valid", "val", "dev")


def open_source(
    spec: str, *, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Open `digits`, a `.npy`/`.npz`, a local folder or a Hugging Face data set id.

    Encoded pictures may be in a `.npy`/`.npz`, or in files named like OpenAI's, `imagenet_teX.npy`
    and so on: `spec` is then one of these files, their folder, or their path up to the `_`.

    Raises UserError when there is no such thing or it has no pictures.
    """
    path = Path(spec)
    if spec == "digits":
        if image_column or label_column:
            raise UserError("the digits have no columns to choose from")
        return _digits()
    if spec and (files := openai_arrays(path)):
        return open_openai(spec, files)
    if path.suffix in (".npy", ".npz"):
        return open_arrays(path)
    if path.is_file():
        raise UserError(f"{spec} is a file: expected a folder, .npy, .npz or a data set id")
    if "://" in spec:
        raise UserError(
            f"{spec} is a stream: `igpt prepare` and `igpt pretrain --streaming` read it"
        )
    if not spec or not (path.exists() or is_hub_id(spec)):
        raise UserError(f"no data at '{spec}': expected a folder, .npy, .npz, `digits` or a Hub id")
    return open_dataset(spec, image_column, label_column)


def is_hub_id(spec: str) -> bool:
    """Whether a source may be a data set of the Hugging Face Hub."""
    return spec.count("/") == 1 and not spec.startswith((".", "/"))


def data_of(config: DataConfig, source: str | None) -> DataConfig:
    """The data section for `source`; `config` itself for None, or its own source however spelled.

    For another source it keeps only size and augmentation: the columns, the splits and what was
    held out mean nothing there.
    """
    if source is None or source_name(source) == source_name(config.source):
        return config
    return DataConfig(source=source, image_size=config.image_size, augmentation=config.augmentation)


def source_name(spec: str) -> str:
    """The one name of a source, however its path is spelled."""
    path = Path(spec)
    return str(path.resolve()) if spec not in ("", "digits") and path.exists() else spec


def open_data(config: DataConfig) -> Source:
    """The source that a recipe's data section names; UserError as `open_source`."""
    return open_source(
        config.source, image_column=config.image_column, label_column=config.label_column
    )


# --- splits --------------------------------------------------------------------------------------


def training_splits(source: Source, config: DataConfig, seed: int) -> tuple[Pictures, Pictures]:
    """Training and validation pictures; the test split is not opened.

    The validation split is the one named, else the source's (unless that is for testing, as
    ImageNet's is), else a part of train drawn from `seed` (paper, section 3.1: 4 % or 10 %). Where
    pretraining read a stream, from which none can be drawn at random, it is train's beginning.
    """
    check_split_names(config)
    train = source.split(config.train_split)
    name = validation_name(source.splits, config)
    if name is not None:
        return train, source.split(name)
    if config.streaming:
        return _hold_out_first(source.name, train, config.validation_pictures)
    if config.split_pictures not in (None, len(train)):
        warnings.warn(
            f"{source.name} had {config.split_pictures:,} pictures when the run began and has "
            f"{len(train):,} now: which were held out is no longer known, and the run may have "
            "learned from what it is tested on",
            stacklevel=1,
        )
    return _hold_out(source.name, train, config.validation_fraction, seed)


def count_split_pictures(source: Source, config: DataConfig) -> int | None:
    """How many pictures `training_splits` draws the held-out ones from; None if it draws none."""
    if config.streaming or validation_name(source.splits, config) is not None:
        return None
    return len(source.split(config.train_split))


def task_training_splits(
    source: Source, config: DataConfig, seed: int
) -> tuple[Pictures, Pictures]:
    """Training and validation pictures of a task that is learned after pretraining.

    In a source with a single split, both are parts of what pretraining learned from, since what it
    held out is for testing (`pictures_to_test`).
    """
    # Whatever name a recipe has for the test split, as ImageNet's have.
    if len(source.splits) > 1 or config.test_split in source.splits:
        return training_splits(source, config, seed)
    train, _ = _set_apart(source, config, seed)
    return _hold_out(source.name, train, config.validation_fraction, seed)


def pictures_to_test(source: Source, config: DataConfig, seed: int) -> Pictures:
    """The test split or, in a source with a single split, what training held out of that split.

    If `config.test_split` is the name of that single split: all of it except what was held out.
    """
    if tuple(source.splits) == (config.test_split,):
        train, _ = training_splits(source, replace(config, test_split=DataConfig.test_split), seed)
        return train
    if not _is_single(source, config.test_split):
        return source.split(config.test_split)
    _, test = _set_apart(source, config, seed)
    return test


def _set_apart(source: Source, config: DataConfig, seed: int) -> tuple[Pictures, Pictures]:
    """`training_splits` of a single split, with a warning that its held-out part is the test."""
    train, held_out = training_splits(source, config, seed)
    warnings.warn(  # shown once, whichever part is asked for, since it belongs to this line
        f"{source.name} has no split '{config.test_split}': the {len(held_out):,} pictures that "
        f"training held out of '{config.train_split}' are taken instead",
        stacklevel=1,
    )
    return train, held_out


def _is_single(source: Source, test_split: str) -> bool:
    """Whether a source's only split must serve for testing too, as no other was asked for."""
    default = test_split in (DataConfig.train_split, DataConfig.test_split)
    return default and test_split not in source.splits and len(source.splits) == 1


def _hold_out(
    name: str, pictures: Pictures, fraction: float, seed: int
) -> tuple[Pictures, Pictures]:
    """The pictures in two parts: the rest, and a random `fraction`; UserError for too few."""
    held_out = max(1, round(len(pictures) * fraction))
    if held_out >= len(pictures):
        raise UserError(f"{name}: {len(pictures)} pictures are too few to hold some out")
    shuffled = numpy_rng(seed, "validation").permutation(len(pictures))
    rest, held = np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])
    return pictures.select(rest), pictures.select(held)


def _hold_out_first(name: str, pictures: Pictures, n: int) -> tuple[Pictures, Pictures]:
    """The pictures in two parts: those after the first `n`, and the first `n`.

    Pretraining held out the stream's first `n` readable pictures. That reaches beyond these `n`
    where some of them are unreadable, so none of these was trained on. UserError for too few.
    """
    if n >= len(pictures):
        raise UserError(f"{name}: {len(pictures)} pictures are too few to hold {n} out")
    return pictures.select(np.arange(n, len(pictures))), pictures.select(np.arange(n))


def check_split_names(config: DataConfig) -> None:
    """UserError when a recipe would train on its test split."""
    if config.test_split in (config.train_split, config.validation_split):
        raise UserError(f"split '{config.test_split}' cannot be trained on and tested on")


def validation_name(splits: Sequence[str], config: DataConfig) -> str | None:
    """The name of the validation split in `training_splits`; None if it is a part of train."""
    usual = (n for n in VALIDATION_NAMES if n in splits and n != config.test_split)
    name = config.validation_split or next(usual, None)
    return None if name == config.train_split else name


def evaluation_split(source: Source, name: str) -> Pictures:
    """A split of a source that was not trained on.

    If the source has a single split and `name`, a usual one, is not it: that split, with a warning.
    """
    if _is_single(source, name):
        (only,) = source.splits
        note = f"{source.name} has no split '{name}': '{only}', its only one, is taken instead"
        warnings.warn(note, stacklevel=2)
        name = only
    return source.split(name)


def _digits() -> Source:
    # The file that `sklearn.datasets.load_digits` reads, without that module's second of imports.
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).with_name("datasets") / "data" / "digits.csv.gz"
    table = np.loadtxt(file, dtype=np.int64, delimiter=",")  # [1797, 64 + 1], pixels 0 to 16
    images = np.rint(table[:, :-1] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    labels, names = table[:, -1], tuple(map(str, range(10)))
    shuffled = numpy_rng(0, "digits").permutation(len(images))
    parts = {"train": np.sort(shuffled[DIGITS_TEST:]), "test": np.sort(shuffled[:DIGITS_TEST])}

    def open_split(split: str) -> Pictures:
        index = parts[split]
        pictures = array_pictures(images[index], labels[index], f"digits/{split}")
        return replace(pictures, class_names=names)

    return Source("digits", {split: partial(open_split, split) for split in parts})
