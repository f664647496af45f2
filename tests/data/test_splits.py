"""Which pictures of a source are trained on, and which never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import write_pictures
from igpt.config import DataConfig, UserError
from igpt.data.pictures import Source
from igpt.data.sources import open_source
from igpt.data.splits import evaluation_split, training_splits


def guarded(source: Source) -> Source:
    """The source, with a test split that must not be opened."""

    def forbidden() -> Any:
        raise AssertionError("the test split was opened")

    return Source(source.name, {**source.open_split, "test": forbidden})


def test_training_never_touches_the_test_split_and_holds_out_a_seeded_tenth() -> None:
    source = guarded(open_source("digits"))
    train, held_out = training_splits(source, DataConfig(), seed=0)
    assert (len(train), len(held_out)) == (1350, 150)
    names = {train.name(i) for i in range(1350)} | {held_out.name(i) for i in range(150)}
    assert len(names) == 1500
    again = training_splits(source, DataConfig(), seed=0)[1]
    other = training_splits(source, DataConfig(), seed=1)[1]
    first = [held_out.name(i) for i in range(150)]
    assert first == [again.name(i) for i in range(150)]
    assert first != [other.name(i) for i in range(150)]


def test_the_test_split_cannot_be_trained_or_validated_on() -> None:
    for config in (DataConfig(train_split="test"), DataConfig(validation_split="test")):
        with pytest.raises(UserError, match="cannot be trained on and tested on"):
            training_splits(open_source("digits"), config, seed=0)


def test_a_validation_split_of_the_source_is_used(tmp_path: Path) -> None:
    write_pictures(tmp_path, "train/1.png", "train/2.png", "validation/3.png")
    train, held_out = training_splits(open_source(str(tmp_path)), DataConfig(), seed=0)
    assert (len(train), len(held_out)) == (2, 1)


def test_a_source_with_one_split_is_evaluated_on_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png", "2.png")
    with pytest.warns(UserWarning, match="has no split 'test'"):
        assert len(evaluation_split(open_source(str(tmp_path)), "test")) == 2
