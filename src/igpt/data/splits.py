"""Which pictures of a source a run trains on, validates on and tests on.

A source may have a split for each, or hold pictures out of what it trains on, at random from a seed
or, as a stream, at its beginning. In a source with a single split, what pretraining held out is
what everything after it is tested on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from igpt.config import DataConfig, UserError
from igpt.data.pictures import Pictures, Source
from igpt.rng import numpy_rng

VALIDATION_NAMES = ("validation", "valid", "val", "dev")


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
        streamed = source.streamed(config.train_split)
        return _hold_out_first(source.name, streamed, config.validation_pictures)
    if config.split_pictures not in (None, len(train)):
        warnings.warn(
            f"{source.name} had {config.split_pictures:,} pictures when the run began and has "
            f"{len(train):,} now: which were held out is no longer known, and the run may have "
            "learned from what it is tested on",
            stacklevel=1,
        )
    return _hold_out(source.name, train, config.validation_fraction, seed)


def count_split_pictures(source: Source, config: DataConfig) -> int:
    """How many pictures there are to train and to validate on."""
    names = {config.train_split, validation_name(source.splits, config) or config.train_split}
    return sum(len(source.split(name)) for name in names)


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
    if not is_single(source, config.test_split):
        return source.split(config.test_split)
    _, test = _set_apart(source, config, seed)
    return test


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
    if is_single(source, name):
        (only,) = source.splits
        note = f"{source.name} has no split '{name}': '{only}', its only one, is taken instead"
        warnings.warn(note, stacklevel=2)
        name = only
    return source.split(name)


def _set_apart(source: Source, config: DataConfig, seed: int) -> tuple[Pictures, Pictures]:
    """`training_splits` of a single split, with a warning of what its test is."""
    train, held_out = training_splits(source, config, seed)
    count, split = f"{len(held_out):,} pictures", f"'{config.train_split}'"
    if config.split_pictures is None and not config.streaming:  # of no run that was trained on them
        taken = f"{count} of {split} are held out for it"
    else:
        taken = (
            f"the {count} that training held out of {split}, and chose its best model by, are taken"
        )
    # Shown once, whichever part is asked for, since it belongs to this line.
    warnings.warn(f"{source.name} has no split '{config.test_split}': {taken}", stacklevel=1)
    return train, held_out


def is_single(source: Source, test_split: str) -> bool:
    """Whether a source's only split must serve for testing too, as no other was asked for.

    Recipes ask for `validation` where, as ImageNet's, that is what their own source has for tests.
    """
    usual = test_split in (DataConfig.train_split, DataConfig.test_split, *VALIDATION_NAMES)
    return usual and test_split not in source.splits and len(source.splits) == 1


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
