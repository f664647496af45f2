"""A trained model that a run goes on from: to pretrain on other pictures or longer, to fine-tune.

Its weights, palette, order and shape are the run's own from then on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from igpt.checkpoint import recipe_of
from igpt.config import (
    DataConfig,
    ModelChoice,
    ModelConfig,
    PaletteConfig,
    Recipe,
    UserError,
)
from igpt.data import data_of
from igpt.folder import StoredModel, open_model
from igpt.interop.files import local_folder


def recipe_from(start: Path, source: str | None = None) -> Recipe:
    """The recipe of a pretraining that goes on from `start`, before what the user changes in it.

    `start` is a run, a model folder or a Hub id. The pictures are those of `source` or, by default,
    its own, with what it held out held out again; how it is trained is its own too. Raises
    UserError when there is no model.
    """
    stored = open_model(local_folder(start))
    config, codec = stored.config, stored.codec
    theirs = recipe_of(start) or Recipe(data=DataConfig(source=""))
    own = replace(theirs.data, image_size=codec.image_size, split_seed=theirs.split_seed)
    return replace(
        theirs,
        start=str(start),
        data=data_of(own, source),
        order=codec.order,
        objective="ar" if config.causal else "bert",
        mask_probability=config.mask_probability,
        palette=PaletteConfig(colors=codec.vocab_size),
        model=ModelChoice(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd),
        finetune=None,
    )


def open_start(recipe: Recipe) -> StoredModel:
    """The model that a run of `recipe` goes on from.

    Raises UserError for a recipe that asks for another shape, and for one that names no data.
    """
    assert recipe.start is not None
    stored = open_model(local_folder(recipe.start))
    config, codec, data = stored.config, stored.codec, recipe.data
    asked = recipe.model_config(config.vocab_size, config.n_positions)
    sizes = ("n_layer", "n_head", "n_embd", "causal")
    if (
        any(getattr(asked, name) != getattr(config, name) for name in sizes)
        or (recipe.order, data.image_size) != (codec.order, codec.image_size)
        or recipe.palette != PaletteConfig(colors=codec.vocab_size)
    ):
        raise UserError(
            "objective, order, size, palette and model of a run are those of the model that it "
            f"starts from, {recipe.start}"
        )
    if not data.source:
        raise UserError(f"{recipe.start} names no data: give --data")
    return stored


def shape_from(stored: StoredModel, recipe: Recipe, n_classes: int = 0) -> ModelConfig:
    """The shape of the model that goes on from `stored`, masked as `recipe` says."""
    masked = recipe.mask_probability
    return replace(stored.config, n_classes=n_classes, mask_probability=masked)
