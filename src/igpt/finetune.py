"""Fine-tuning: the pretraining loop with L_GEN + lambda L_CLF, from a pretrained model's weights.

Average pool of n^L, a linear head that starts at zero, Adam at a constant rate, and the checkpoint
with the best validation accuracy kept (paper, sections 2.3 and 3.4).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igpt.checkpoint import RunDirectory
from igpt.classify import HeadClassifier
from igpt.config import FINETUNING, DataConfig, FinetuneConfig, Recipe, Say, UserError
from igpt.data.labels import Labelled, LazyLabelled, few_labels, open_training
from igpt.data.pictures import Source
from igpt.data.sources import open_data
from igpt.data.splits import count_split_pictures, is_single
from igpt.device import compute_dtype, default_device
from igpt.folder import StoredModel, load_class_names, save_model
from igpt.model import ImageGPT
from igpt.objectives import Joint, generative_objective, require_likelihood
from igpt.order import Codec
from igpt.parallel.processes import name_skipped, require_same, together
from igpt.probe.linear import metric_value
from igpt.run import new_model, open_run, require_same_split, train_run, with_split_pictures
from igpt.train import Outcome, Trainer, Validation
from igpt.warm_start import (
    RATE_FACTOR,
    inherited_recipe,
    open_start,
    shape_from,
    warn_of_other_parts,
)


@dataclass(frozen=True)
class Finetuned:
    """How a fine-tuning ended."""

    outcome: Outcome
    metric: str
    best: float | None  # of the metric on validation
    test_split: str | None  # of its pictures; None where there is nothing to test on


def finetune_recipe(start: Path, source: str | None = None) -> Recipe:
    """The recipe of a fine-tuning from the model at `start`, before what the user changes in it.

    Its pictures are those of `source` or, by default, of the pretraining, less what that held out.
    Raises UserError when there is no model.
    """
    theirs = inherited_recipe(start, source)
    train = replace(
        FINETUNING,
        lr=theirs.train.lr * RATE_FACTOR,
        compile=theirs.train.compile,
        precision=theirs.train.precision,
        seed=theirs.train.seed,
    )
    return replace(theirs, train=train, finetune=FinetuneConfig())


def finetune(recipe: Recipe | None, out: Path, *, resume: bool, say: Say) -> Finetuned:
    """Fine-tune as `recipe` says into the run directory `out`, or go on with the run there.

    Raises UserError as `pretrain` does, and for data without labels.
    """
    with open_run(recipe, out, resume, "finetune") as (recipe, run, resume):
        return _finetune(recipe, run, resume, say)


def _finetune(recipe: Recipe, run: RunDirectory, resume: bool, say: Say) -> Finetuned:
    options, config = recipe.finetune, recipe.train
    assert options is not None  # it is a recipe of this command
    with together():
        start = open_start(recipe)
        _check(options, start)
        codec = start.codec
        source = open_data(recipe.data)
        warn_of_other_parts(recipe, source)
        count = count_split_pictures(source, recipe.data)
        require_same_split(recipe, count, resume)
        train, validation = _open_pictures(source, recipe, options, codec, say)
        if resume:
            _require_same_classes(run, train.class_names)
        loader = train.loader(codec, config.batch_size, config.seed, recipe.data.augmentation)
    recipe = with_split_pictures(recipe, count)
    require_same("labelled pictures", (zlib.crc32(train.labels.tobytes()), len(validation)))
    model = _build(recipe, options, start, train.n_classes)
    classifier = HeadClassifier(model, train.class_names, masks=1)
    dtype = compute_dtype(config.precision, default_device())
    held_out = torch.from_numpy(codec.encode(validation.images))

    def validate(check: Callable[[], None]) -> Validation:
        prediction = classifier.predict(held_out, dtype, check)
        value = metric_value(options.metric, validation.labels, prediction.labels)
        return Validation({f"val_{options.metric}": value}, -value)

    generative = generative_objective(model.config, config.seed, stream="train")
    trainer = Trainer(
        model,
        Joint(
            generative,
            class_weights(train, options),
            gen_weight=options.gen_weight,
            clf_weight=options.clf_weight,
            label_smoothing=options.label_smoothing,
        ),
        loader,
        config,
        run,
        validate,
        lambda: save_model(run.path, model, codec, train.class_names),
        parameter_groups(model, options),
    )
    with closing(loader):
        outcome = train_run(trainer, recipe, codec, resume=resume, say=say)
    name_skipped(loader.skipped, say)
    best = None if outcome.best is None else -outcome.best
    return Finetuned(outcome, options.metric, best, _test_split(source, recipe.data))


def _test_split(source: Source, config: DataConfig) -> str | None:
    """The name of the split to test on, which a single one serves for too; None without one."""
    name = config.test_split
    return name if name in source.splits or is_single(source, name) else None


def parameter_groups(model: ImageGPT, options: FinetuneConfig) -> list[dict[str, Any]]:
    """Adam's groups by depth: the first `freeze` blocks stay as they are, deeper ones learn faster.

    A group's rate is the schedule's times `lr_scale`: `layer_decay` to its distance from the top.
    What the loss does not depend on stays as well. Depth 0 is the embeddings, l is block l - 1, and
    n_layer + 1 is what follows the blocks.
    """
    top = model.config.n_layer + 1
    by_depth: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        depth = 0 if name in ("wte", "wpe", "start") else top
        if name.startswith("blocks."):
            depth = int(name.split(".")[1]) + 1
        unused = (name == "head.weight" and options.gen_weight == 0) or (
            name == "start" and not model.config.shift
        )
        if unused or (options.freeze and depth <= options.freeze):
            parameter.requires_grad_(False)
        else:
            by_depth.setdefault(depth, []).append(parameter)
    return [
        {"params": parameters, "lr_scale": options.layer_decay ** (top - depth)}
        for depth, parameters in sorted(by_depth.items())
    ]


def _check(options: FinetuneConfig, start: StoredModel) -> None:
    """UserError for options that do not suit the model that is fine-tuned."""
    if options.gen_weight:
        try:
            require_likelihood(start.config)
        except UserError as error:
            raise UserError(f"{error}: finetune.gen_weight=0 trains its classes alone") from error
    if options.freeze > start.config.n_layer:
        raise UserError(f"finetune.freeze: the model has {start.config.n_layer} blocks")


def _require_same_classes(run: RunDirectory, names: tuple[str, ...]) -> None:
    """UserError where the run's best model so far has a head for other classes than `names`."""
    if not (run.path / "config.json").is_file():  # nothing was validated yet
        return
    for theirs, ours in zip(load_class_names(run.path, len(names)), names, strict=True):
        if theirs != ours:
            raise UserError(f"cannot resume {run.path}: its class {theirs} is {ours} in the data")


def _open_pictures(
    source: Source, recipe: Recipe, options: FinetuneConfig, codec: Codec, say: Say
) -> tuple[Labelled | LazyLabelled, Labelled]:
    """Training pictures, held as tokens unless random crops are decoded anew, and validation's."""
    data = recipe.data
    pictures, held_out = open_training(source, data, recipe.split_seed)
    if options.labels_per_class is not None:  # before any is decoded
        per_class, seed = options.labels_per_class, recipe.train.seed
        few = few_labels(pictures.labels, per_class, seed, pictures.class_names)
        pictures = pictures.select(few)
    crops = data.augmentation == "imagenet"
    train: Labelled | LazyLabelled = pictures if crops else pictures.encode(codec)
    validation = held_out.encode(codec)
    say(
        f"{len(train):,} labelled pictures to train on, {len(validation):,} held out, "
        f"{train.n_classes} classes"
    )
    return train, validation


def _build(recipe: Recipe, options: FinetuneConfig, start: StoredModel, n_classes: int) -> ImageGPT:
    """The starting model with a head of zeros for the classes."""
    model = new_model(shape_from(start, recipe, n_classes), recipe)
    if not options.from_scratch:
        start.copy_into(model, but=("clf.weight",))
    return model


def class_weights(train: Labelled | LazyLabelled, options: FinetuneConfig) -> torch.Tensor:
    """A weight [C] for each class's loss, 1 on average over the pictures."""
    counts = np.bincount(train.labels, minlength=train.n_classes)
    if options.class_weights == "none":
        return torch.ones(train.n_classes)
    occurring = (counts > 0).sum()
    return torch.from_numpy(len(train) / (occurring * np.maximum(counts, 1))).float()
