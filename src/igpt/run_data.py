"""The pictures that a trained run is probed, scored or tested on: its own, or others.

The run's recipe tells which pictures it held out and which ones a probe of it learned from.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from igpt.checkpoint import recipe_of
from igpt.config import DataConfig, Recipe, UserError
from igpt.data.decode import encode_all
from igpt.data.labels import LargeTask, Task, open_large_task, open_task, unlabelled
from igpt.data.pictures import Pictures, Source
from igpt.data.sources import data_of, is_gone, open_data, source_name
from igpt.data.splits import (
    count_split_pictures,
    evaluation_split,
    is_single,
    pictures_to_test,
    training_splits,
    validation_name,
)
from igpt.order import Codec, Encoded
from igpt.probe.store import LearnedFrom, source_fingerprint

if TYPE_CHECKING:
    from igpt.pipeline import Pipeline


@dataclass(frozen=True)
class RunData:
    """A source of pictures to use with a run that is trained already."""

    config: DataConfig  # the run's data section, changed as asked
    split: str  # to test on
    recipe: Recipe | None  # of the run; None for a model folder without one
    option: str = "--split"  # by which a command is told `split`

    @classmethod
    def of(
        cls,
        run: Path,
        source: str | None = None,
        split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        option: str = "--split",
    ) -> RunData:
        """What is not given is taken from the run; UserError when neither names a source."""
        recipe = recipe_of(run)
        if not source and not recipe:
            raise UserError(f"{run} has no recipe that names its data: give --data")
        own = data_of((recipe or Recipe()).data, source or None)
        config = replace(
            own,
            image_column=image_column or own.image_column,
            label_column=label_column or own.label_column,
        )
        return cls(config, split or config.test_split, recipe, option)

    def task(self, size: int) -> Task:
        """Labelled train, validation and test pictures of the size that the model takes.

        The validation pictures are the source's own, unless those are tested on, or a part of train
        (`task_training_splits`). UserError where the source lacks the split to test on.
        """
        source = self._open()
        return open_task(source, self._tested(source), size, self._split_seed)

    def large_task(self, codec: Codec) -> LargeTask:
        """As `task`, for pictures that need not fit in memory."""
        source = self._open()
        return open_large_task(source, self._tested(source), codec, self._split_seed)

    def learned(self) -> LearnedFrom:
        """What a probe on a `task` of this source learns from."""
        pictures = count_split_pictures(self._source, self.config)
        return LearnedFrom(source_fingerprint(self.config.source), pictures)

    def pictures(self, learned_from: LearnedFrom | None = None) -> Pictures:
        """The pictures of the split; `pictures_to_test` where the run or a probe used this source.

        A warning tells where they may have been learned from all the same.
        """
        source = self._open()
        same = learned_from and learned_from.source == source_fingerprint(self.config.source)
        theirs = learned_from if same else None
        if theirs or self._is_own(source):
            if theirs and is_single(source, self.split):
                self._warn_of_other_pictures(source, theirs.pictures)
            return pictures_to_test(source, self._tested(source), self._split_seed)
        own = self.recipe and self.recipe.data.split_pictures
        for what, pictures in (("probe", learned_from and learned_from.pictures), ("run", own)):
            if pictures and self._may_have_moved(source, pictures):
                warnings.warn(
                    f"the {what} learned from {pictures:,} pictures, as many as {source.name} "
                    "has: if they are the same, it is tested on what it learned from",
                    stacklevel=2,
                )
        if self.recipe is not None and self.recipe.data.streaming:
            warnings.warn(
                f"the run learned from a stream, {self.recipe.data.source}, which may have had "
                f"pictures of {source.name} in it",
                stacklevel=2,
            )
        elif start := self._start_on_this():
            warnings.warn(
                f"the run began from {start}, which learned from {source.name}: some of what is "
                "tested on may be what it learned from",
                stacklevel=2,
            )
        return evaluation_split(source, self.split)

    def _warn_of_other_pictures(self, source: Source, then: int) -> None:
        """Where a single split has more or fewer pictures than `then`, when a probe learned."""
        now = count_split_pictures(source, self.config)
        if now != then:
            warnings.warn(
                f"{source.name} had {then:,} pictures when the probe learned from "
                f"it and has {now:,} now: which were kept for testing is no longer known, and it "
                "may be tested on what it learned from",
                stacklevel=3,
            )

    def _may_have_moved(self, source: Source, pictures: int) -> bool:
        """Whether the split to test on may be the `pictures` learned from, at another path."""
        if is_single(source, self.split):
            (only,) = source.splits
            return len(source.split(only)) == pictures
        ours = self.split == self.config.train_split
        return ours and count_split_pictures(source, self.config) == pictures

    def _start_on_this(self) -> str | None:
        """The run from which this one began, maybe through others, that learned from the source."""
        start = self.recipe.init_from if self.recipe else None
        seen = set[str]()  # a run may lie where the one that it began from lay
        while start and start not in seen and Path(start).is_dir():
            if (recipe := recipe_of(Path(start))) is None:
                return None
            if source_name(recipe.data.source) == source_name(self.config.source):
                return start
            seen.add(start)
            start = recipe.init_from
        return None

    def _is_own(self, source: Source) -> bool:
        """Whether the run learned from this source, which may have been moved since."""
        if self.recipe is None:
            return False
        ours = self.recipe.data
        if self.config.source == ours.source:
            return True
        if ours.split_pictures is None:
            return False
        if not {ours.train_split, ours.validation_split or ours.train_split} <= set(source.splits):
            return False
        return is_gone(ours.source) and count_split_pictures(source, ours) == ours.split_pictures

    def unlabelled(self) -> Pictures:
        """Training pictures whose features are used without their labels."""
        train, _ = training_splits(self._source, self.config, self._split_seed)
        return train.select(unlabelled(len(train)))

    @cached_property
    def _source(self) -> Source:
        return open_data(self.config)

    def _open(self) -> Source:
        """The source; UserError, with what --split takes, where it has other splits than that."""
        source = self._source
        if self.split not in source.splits and len(source.splits) > 1:
            known = ", ".join(source.splits)
            others = [name for name in source.splits if name != self.config.train_split]
            raise UserError(
                f"{source.name} has no split '{self.split}', only: {known}; give "
                f"{self.option} {' or '.join(others)}"
            )
        return source

    def _tested(self, source: Source) -> DataConfig:
        """The data section with the split to test on.

        How many pictures there were matters only to a run that drew what it held out from train.
        """
        pictures = None
        if validation_name(source.splits, self.config) is None and self._is_own(source):
            pictures = self.recipe.data.split_pictures if self.recipe else None
        return replace(self.config, test_split=self.split, split_pictures=pictures)

    @property
    def _split_seed(self) -> int:
        """The seed that the run's held-out pictures were drawn with."""
        return self.recipe.split_seed if self.recipe else 0


@dataclass(frozen=True)
class Named:
    """Readable pictures as tokens of the model's size, which nothing needs to resize again."""

    images: Encoded  # [N, T]
    names: list[str]
    labels: npt.NDArray[np.int64] | None  # [N], -1 where one is missing
    class_names: tuple[str, ...] | None  # of the labels, where the source names them
    skipped: list[str]  # names of the unreadable ones, and why


def load_named(pictures: Pictures, pipeline: Pipeline) -> Named:
    """All of the pictures that can be read, in memory."""
    decoded = encode_all(pictures, pipeline.codec, pipeline.transform)
    assert isinstance(decoded.images, Encoded)
    names = [pictures.name(int(i)) for i in decoded.kept]
    labels = None if pictures.labels is None else pictures.labels[decoded.kept]
    return Named(decoded.images, names, labels, pictures.class_names, decoded.skipped)
