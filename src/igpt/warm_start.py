"""A trained model that a run starts from: to pretrain on other pictures or longer, to fine-tune.

The run takes over its weights, palette, order and shape. A resumed run opens it again.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from igpt.checkpoint import recipe_of
from igpt.config import (
    DataConfig,
    ModelChoice,
    ModelConfig,
    PaletteConfig,
    ParallelConfig,
    Recipe,
    UserError,
)
from igpt.data.pictures import Source
from igpt.data.sources import data_of, is_gone, source_name
from igpt.data.splits import is_single, validation_name
from igpt.folder import StoredModel, open_model
from igpt.interop.files import local_folder

# The learning rate, as a part of the one that the model was trained with: to fine-tune, the paper
# searches it again, and often ends ten times lower (section 3.4).
RATE_FACTOR = 0.1


def start_name(start: str) -> str:
    """A model's one name from any working directory: the whole path of a folder, or a Hub id."""
    return str(Path(start).resolve()) if Path(start).exists() else start


def inherited_recipe(start: Path, source: str | None = None) -> Recipe:
    """The recipe that a run inherits from `start`: a run, a model folder or a Hub id.

    The pictures are those of `source` or, by default, those of `start`, with the same ones held
    out. The settings of its training are kept, except how it was divided over processes and memory.
    Raises UserError when there is no model.
    """
    stored = open_model(local_folder(start))
    config, codec = stored.config, stored.codec
    theirs = recipe_of(start) or Recipe(data=DataConfig(source=""))
    own = replace(theirs.data, image_size=codec.image_size, split_seed=theirs.split_seed)
    return replace(
        theirs,
        init_from=start_name(str(start)),
        data=data_of(own, source),
        order=codec.order,
        objective=config.objective,
        mask_probability=config.mask_probability,
        palette=PaletteConfig(colors=codec.vocab_size),
        model=ModelChoice(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd),
        train=replace(theirs.train, micro_batch_size=None, activation_checkpointing=False),
        parallel=ParallelConfig(),
    )


def open_start(recipe: Recipe) -> StoredModel:
    """The model that a run of `recipe` starts from.

    Raises UserError for a recipe that names no model or no data, and for one whose objective,
    order, size, palette or shape is not the model's.
    """
    if recipe.init_from is None:
        raise UserError("init_from of the recipe must name the model that the run goes on from")
    if is_gone(recipe.init_from):
        raise UserError(
            f"{recipe.init_from}, which the run starts from, is gone: if it was moved, name it "
            "(igpt pretrain --init-from MOVED --resume, or igpt finetune MOVED --resume)"
        )
    stored = open_model(local_folder(recipe.init_from))
    config, codec = stored.config, stored.codec
    asked = recipe.model_config(config.vocab_size, config.n_positions)
    shape = ("n_layer", "n_head", "n_embd", "causal")
    if (
        any(getattr(asked, name) != getattr(config, name) for name in shape)
        or (recipe.order, recipe.data.image_size) != (codec.order, codec.image_size)
        or recipe.palette != PaletteConfig(colors=codec.vocab_size)
    ):
        raise UserError(
            "objective, order, size, palette and model of a run are those of the model that it "
            f"starts from, {recipe.init_from}"
        )
    if not recipe.data.source:
        raise UserError(f"{recipe.init_from} names no data: give --data")
    return stored


def warn_of_other_parts(recipe: Recipe, source: Source) -> None:
    """Say so where the model that a run starts from held out other pictures of the same source."""
    if recipe.init_from is None or validation_name(source.splits, recipe.data) is not None:
        return  # nothing is drawn
    theirs = recipe_of(Path(recipe.init_from))
    if theirs is None or source_name(theirs.data.source) != source_name(recipe.data.source):
        return
    if _held_out(theirs) != _held_out(recipe):
        used = "validated and tested" if is_single(source, recipe.data.test_split) else "validated"
        warnings.warn(
            f"{recipe.init_from} held out other pictures of {recipe.data.source}: some of what is "
            f"{used} on may be what it learned from",
            stacklevel=1,
        )


def _held_out(recipe: Recipe) -> tuple[object, ...]:
    """What decides which pictures of a source are drawn to be held out."""
    data = recipe.data
    part = data.validation_pictures if data.streaming else data.validation_fraction
    return data.train_split, data.streaming, part, recipe.split_seed


def shape_from(stored: StoredModel, recipe: Recipe, n_classes: int = 0) -> ModelConfig:
    """The shape of the model that starts from `stored`, with a head for `n_classes` (0: none).

    A BERT model hides positions as often as `recipe` says.
    """
    masked = recipe.mask_probability
    return replace(stored.config, n_classes=n_classes, mask_probability=masked)
