"""`igpt info`: what a preset, a recipe, a run or a model is and costs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.cli.report import Report
from igpt.config import PRESETS, Say, UserError
from igpt.recipes import shipped_recipes

if TYPE_CHECKING:
    from igpt.config import ModelConfig, Recipe

EXAMPLE = "igpt info igpt-s --size 32 --colors 512"

SIZE, COLORS = 32, 512  # of a preset, as in the paper
UNITS = ("", "k", "M", "G", "T", "P", "E")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a preset: {', '.join(PRESETS)}; a recipe: {', '.join(shipped_recipes())} or a .yaml "
        "file; a run, a model folder or a Hub id",
    )
    parser.add_argument("--size", type=int, help=f"of a preset: side in pixels; default {SIZE}")
    parser.add_argument("--colors", type=int, help=f"of a preset: default {COLORS}")


def run(args: argparse.Namespace, say: Say) -> Report:
    if args.model in PRESETS:
        return _report(args.model, *_preset(args))
    if args.size is not None or args.colors is not None:
        raise UserError(f"--size and --colors are for presets, one of: {', '.join(PRESETS)}")
    if args.model in shipped_recipes() or Path(args.model).suffix in (".yaml", ".yml"):
        return _recipe(args.model)
    return _report(args.model, *_trained(args.model))


def _report(name: str, config: ModelConfig, batch_size: int, trained: dict[str, Any]) -> Report:
    values = _values(config, batch_size)
    text = _text(name, config, values)
    if trained:
        told = [_row(name.replace("_", " "), str(value)) for name, value in trained.items()]
        text = "\n".join([text, "", *told])
    return Report(text, {"model": name, **values, "training": trained})


def _recipe(name: str) -> Report:
    """A recipe as it is written, with what its comments tell, and its network."""
    from igpt.palette import recipe_colors
    from igpt.recipes import load_recipe, recipe_text

    recipe = load_recipe(name)
    config = recipe.model_config(recipe_colors(recipe.palette), recipe.data.image_size**2)
    network = _report("its network", config, recipe.train.batch_size, {})
    text = f"{recipe_text(name).rstrip()}\n\n{network.text}"
    return Report(text, {**network.values, "model": name, "recipe": asdict(recipe)})


def _preset(args: argparse.Namespace) -> tuple[ModelConfig, int, dict[str, Any]]:
    """A preset's shape, the pictures of a training step (the paper's, section 3.4), and nothing."""
    from igpt.config import DataConfig, ModelChoice, PaletteConfig, TrainConfig

    # DataConfig and PaletteConfig check the ranges.
    data = DataConfig(image_size=SIZE if args.size is None else args.size)
    palette = PaletteConfig(colors=COLORS if args.colors is None else args.colors)
    choice = ModelChoice(args.model)
    config = choice.resolve(palette.colors, data.image_size**2, causal=True)
    return config, TrainConfig().batch_size, {}


def _trained(name: str) -> tuple[ModelConfig, int, dict[str, Any]]:
    """As `_preset`, for a run, a model folder or a Hub id; and how it was trained, if known."""
    from igpt.checkpoint import recipe_of
    from igpt.config import Recipe
    from igpt.disk import read_json
    from igpt.folder import require_model
    from igpt.interop.files import local_folder, read_weights
    from igpt.interop.huggingface import config_from_hf

    folder = local_folder(name)
    if not folder.is_dir():
        raise UserError(
            f"no run, model folder or Hub id '{name}', and no preset or recipe of that name: "
            f"{', '.join((*PRESETS, *shipped_recipes()))}"
        )
    require_model(folder)
    weights, _ = read_weights(folder)  # they tell whether there are biases and a classifier
    config, _ = config_from_hf(read_json(folder / "config.json"), weights)
    recipe = recipe_of(folder)
    if recipe is None:
        return config, Recipe().train.batch_size, {}
    return config, recipe.train.batch_size, _training(recipe, folder)


def _training(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """How the run in `folder` was trained."""
    from igpt.checkpoint import RunDirectory
    from igpt.monitor import best_value, last_step, read_metrics

    rows = read_metrics(RunDirectory(folder).metrics)
    known = {} if recipe.init_from is None else {"started_from": recipe.init_from}
    known |= {
        "data": recipe.data.source,
        "order": recipe.order,
        "steps": f"{last_step(rows):,} of {recipe.train.steps:,}",
    }
    for metric in ("val_loss", "val_accuracy", "val_balanced_accuracy"):
        if (best := best_value(rows, metric)) is not None:
            known[f"best_{metric}"] = f"{best:.4f}"
    return known


def _values(config: ModelConfig, batch_size: int) -> dict[str, Any]:
    from igpt import plan

    return {
        **asdict(config),
        "parameters": plan.n_parameters(config),
        "parameters_by_part": plan.parameters(config),
        "forward_flops": plan.forward_flops(config),
        "batch_size": batch_size,
        "training_step_flops": batch_size * plan.training_flops(config),
        "weight_bytes": {name: plan.weight_bytes(config, name) for name in plan.BYTES},
        "cache_bytes": {name: plan.cache_bytes(config, name) for name in plan.BYTES},
    }


def _text(name: str, config: ModelConfig, values: dict[str, Any]) -> str:
    step = f"FLOPs, training step of {values['batch_size']:,} pictures"
    weights, cache = values["weight_bytes"], values["cache_bytes"]
    return "\n".join(
        [
            f"{name}, {config.kind}",
            "",
            _row("layers", f"{config.n_layer:,}"),
            _row("width", f"{config.n_embd:,}"),
            _row("heads", f"{config.n_head:,}"),
            _row("context, tokens", f"{config.n_positions:,}"),
            _row("vocabulary, colours", f"{config.vocab_size:,}"),
            "",
            _row("parameters", f"{values['parameters']:,}"),
            *(
                _row("  " + part.replace("_", " "), f"{count:,}")
                for part, count in values["parameters_by_part"].items()
            ),
            "",
            _row("FLOPs, forward pass of a picture", _short(values["forward_flops"])),
            _row(step, _short(values["training_step_flops"])),
            "",
            _row("bytes", *weights),
            _row("  weights", *map(_short, weights.values())),
            _row("  key/value cache of a picture", *map(_short, cache.values())),
        ]
    )


def _row(name: str, *cells: str) -> str:
    return f"{name:<40}" + "".join(f"{cell:>16}" for cell in cells)


def _short(number: int) -> str:
    """Four digits and a decimal unit: 182.7 G."""
    number = int(float(f"{number:.3e}"))  # rounded first: 999,999 is 1 M, not 1000 k
    power = min((len(str(number)) - 1) // 3, len(UNITS) - 1)
    return f"{number / 1000**power:.4g} {UNITS[power]}".rstrip()
