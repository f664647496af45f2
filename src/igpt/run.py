"""A run, whatever it trains: its recipe and folder, its model, the loop from where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from igpt.checkpoint import RunDirectory, recipe_of
from igpt.config import ModelConfig, Recipe, Say, UserError
from igpt.data.sources import is_gone, source_name
from igpt.device import compute_dtype, default_device
from igpt.disk import require_folder
from igpt.model import ImageGPT
from igpt.monitor import Monitor
from igpt.order import Codec, permutation
from igpt.palette import Palette
from igpt.parallel.meeting import is_restart
from igpt.parallel.processes import (
    processes,
    rank,
    require_same,
    share_of_batch,
    size,
    together,
)
from igpt.parallel.sharding import build, draw_whole
from igpt.recipes import CHANGEABLE_ON_RESUME, differing_fields
from igpt.rng import torch_rng
from igpt.train import Outcome, Trainer
from igpt.warm_start import start_name

Command = Literal["pretrain", "finetune"]


@contextmanager
def open_run(
    recipe: Recipe | None, out: Path, resume: bool, command: Command
) -> Iterator[tuple[Recipe, RunDirectory, bool]]:
    """The settled recipe, the run in `out`, and whether to go on with it.

    In this context the processes that torchrun started work together. Raises UserError as
    `settle_recipe` and `check_recipe` do.
    """
    run = RunDirectory(out)
    resume = resume or (is_restart() and run.exists())
    recipe = settle_recipe(recipe, run, resume, command)
    with processes(recipe.parallel):
        check_recipe(recipe)
        yield recipe, run, resume


def settle_recipe(
    recipe: Recipe | None, run: RunDirectory, resume: bool, command: Command
) -> Recipe:
    """The recipe of a new run, or the one that a run to resume was begun with by the same command.

    How it is divided over processes and memory, compiled, logged and kept may change on the way.
    """
    recipe = recipe and _with_whole_paths(recipe)
    if not run.exists():
        if recipe is None:
            raise UserError(f"no run at {run.path} to resume, and no recipe to begin one")
        if _command_of(recipe) != command:
            raise UserError(f"the recipe is one of `igpt {_command_of(recipe)}`")
        source = Path(recipe.data.source)
        if source.is_dir() and run.path.resolve().is_relative_to(source):
            raise UserError(f"{run.path} would lie among the pictures of {source}: choose another")
        run.require_free()
        if recipe.palette.path is not None:
            Palette.load(recipe.palette.path)  # a mistake is told before the pictures are read
        require_folder(run.path)
        return recipe if _goes_on_with_its_data(recipe) else with_split_pictures(recipe, None)
    if not resume:
        raise UserError(
            f"{run.path} holds a run already: add --resume, remove it, or choose another --out"
        )
    saved = run.recipe()
    if _command_of(saved) != command:
        raise UserError(f"{run.path} is a run of `igpt {_command_of(saved)}`: resume it there")
    if recipe is None:
        return saved
    recipe = with_split_pictures(recipe, saved.data.split_pictures)
    differing = differing_fields(recipe, _with_whole_paths(saved))
    changed = [name for name in differing if not name.startswith(_may_change(saved, run))]
    if changed:
        fields = ", ".join(changed)
        other = ", where --init-from can go on from its model" if command == "pretrain" else ""
        raise UserError(
            f"cannot resume {run.path}: its recipe has another {fields}; without these options it "
            f"goes on as it was; or choose another --out{other}"
        )
    return recipe


def _may_change(saved: Recipe, run: RunDirectory) -> tuple[str, ...]:
    """Beginnings of the fields in which a run that goes on may differ from when it began."""
    fields = list(CHANGEABLE_ON_RESUME)
    if saved.data.split_pictures is not None and is_gone(saved.data.source):
        fields.append("data.source")  # moved pictures are known by number: `require_same_split`
    if saved.palette.path is not None and is_gone(saved.palette.path):
        fields.append("palette.path")  # the run has a copy
    if saved.init_from is not None and is_gone(saved.init_from) and run.checkpoints.exists():
        fields.append("init_from")  # with a checkpoint, only the shape of that model is needed
    return tuple(fields)


def _with_whole_paths(recipe: Recipe) -> Recipe:
    """The recipe whose files and folders are the same from any working directory."""
    start = recipe.init_from and start_name(recipe.init_from)
    data = replace(recipe.data, source=source_name(recipe.data.source))
    palette = recipe.palette
    if palette.path is not None:
        palette = replace(palette, path=str(Path(palette.path).resolve()))
    return replace(recipe, data=data, palette=palette, init_from=start)


def _goes_on_with_its_data(recipe: Recipe) -> bool:
    """Whether a run starts from a model of the same pictures, so that its count of them holds."""
    start = recipe_of(Path(recipe.init_from)) if recipe.init_from else None
    return start is not None and source_name(start.data.source) == recipe.data.source


def with_split_pictures(recipe: Recipe, pictures: int | None) -> Recipe:
    """The recipe that says how many pictures there were to train and to validate on."""
    return replace(recipe, data=replace(recipe.data, split_pictures=pictures))


def require_same_split(recipe: Recipe, pictures: int | None, resume: bool) -> None:
    """UserError when a run to resume began with more or fewer: others would come in each batch."""
    known, source = recipe.data.split_pictures, recipe.data.source
    if resume and known not in (None, pictures):
        raise UserError(
            f"cannot resume: {source} had {known:,} pictures to train and validate on when the run "
            f"began, and has {pictures or 0:,} now"
        )


def _command_of(recipe: Recipe) -> Command:
    return "pretrain" if recipe.finetune is None else "finetune"


def check_recipe(recipe: Recipe) -> None:
    """UserError for an unknown order, or work that the processes cannot share, before any of it."""
    permutation(recipe.order, recipe.data.image_size)
    recipe.parallel.mesh(size())
    recipe.parallel.check_fit(recipe.model_config(1, 1))
    share_of_batch(recipe.train.batch_size)


def new_model(config: ModelConfig, recipe: Recipe) -> ImageGPT:
    """A model of the shape as the run of `recipe` trains it, with the weights that its seed draws.

    Built on meta, split over the processes, materialised, initialised: the same weights for any
    number of processes and any device. Raises UserError when `recipe.parallel` asks for another
    number of processes.
    """
    train, device = recipe.train, default_device()
    dtype, checkpointing = compute_dtype(train.precision, device), train.activation_checkpointing
    model = build(config, recipe.parallel, device, dtype, checkpointing=checkpointing)
    model.init_weights(draw_whole(torch_rng(train.seed, "init")))
    return model


def train_run(trainer: Trainer, recipe: Recipe, codec: Codec, *, resume: bool, say: Say) -> Outcome:
    """Train to the end, from the run's newest checkpoint if it is resumed and has one.

    Raises UserError for a run that another process trains, or that had another palette.
    """
    run, config = trainer.run, recipe.train
    with ExitStack() as stack:
        with together():
            if rank() == 0:
                stack.enter_context(run.alone())
                if not resume and run.exists():  # which it was not when this one was called
                    raise UserError(f"{run.path} holds a run already: another process began it")
        if config.warmup_steps > config.steps:
            say(f"warning: {config.steps} steps end before the warm-up's {config.warmup_steps}")
        if resume:
            _go_on(trainer, recipe, codec, say)
        monitor: Monitor | None = None
        with together():
            if rank() == 0:
                owed = trainer.owes_validation()
                monitor = Monitor(run.path, trainer.step, config.steps, config.wandb, is_owed=owed)
                run.begin(recipe, codec.palette)  # once nothing that is asked for is missing
                stack.enter_context(monitor)
        return trainer.train(monitor.log if monitor else lambda _row: None)


def _go_on(trainer: Trainer, recipe: Recipe, codec: Codec, say: Say) -> None:
    """From the run's newest checkpoint, if it has one."""
    run = trainer.run
    with together():
        begun = run.palette()
        if begun not in (None, codec.palette):
            was = f"{recipe.init_from} has another palette than when {run.path} began"
            raise UserError(f"cannot resume: {was}")
        checkpoint = run.latest_checkpoint(say)
    require_same("checkpoints", checkpoint and checkpoint.progress.step)
    if checkpoint is None:
        say(f"no checkpoint in {run.path} to go on from: beginning at step 0")
        return
    trainer.resume(checkpoint)
    say(f"resuming at step {trainer.step} of {recipe.train.steps}")
