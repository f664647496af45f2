"""`igpt plan`: what a recipe needs on a cluster, before anything is started."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from igpt.cli.arguments import add_short_flags, positive, recipe_and_changes
from igpt.cli.pretrain import SHORT
from igpt.cli.report import Report
from igpt.config import ModelChoice, Recipe, Say, UserError
from igpt.plan import (
    GPU,
    GPUS,
    USABLE,
    Division,
    activation_bytes,
    cache_bytes,
    checkpoint_bytes,
    computed_flops,
    fits,
    fitting_division,
    n_parameters,
    training_flops,
    training_memory,
)
from igpt.recipes import load_recipe, shipped_recipes

if TYPE_CHECKING:
    from igpt.config import ModelConfig

EXAMPLE = "igpt plan igpt-xl-imagenet64 --gpus 64 --gpu h100"

UTILISATION = 0.4  # part of a GPU's products a second that a run reaches
# What an iGPT-L took, as OpenAI told (openai.com/index/image-gpt), without size or precision.
REPORTED = {("igpt-l", 32): 2_500}  # V100-days, by preset and size of the pictures
SECONDS_A_DAY = 86_400


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "igpt plan RECIPE --gpus N --gpu GPU [options] [section.field=value ...]"
    parser.add_argument(
        "words",
        metavar="RECIPE",
        nargs="+",
        help=f"a .yaml file or one of: {', '.join(shipped_recipes())}; then any field of it",
    )
    parser.add_argument(
        "--gpus", type=positive, metavar="N", required=True, help="processes, one a GPU"
    )
    parser.add_argument("--gpu", choices=GPUS, required=True, help="its kind")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=UTILISATION,
        metavar="U",
        help=f"fraction of the GPU's peak speed that is reached; default {UTILISATION}",
    )
    add_short_flags(parser, SHORT)


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.palette import recipe_colors

    name, changes = recipe_and_changes(args, SHORT)
    recipe = load_recipe(name, changes)
    if not 0 < args.utilisation <= 1:
        raise UserError(f"--utilisation must be above 0 and at most 1, got {args.utilisation}")
    gpu, size = GPUS[args.gpu], recipe.data.image_size
    config = recipe.model_config(recipe_colors(recipe.palette), size * size)
    own = _division(recipe, args.gpus, gpu)
    fitting = fitting_division(config, own, gpu)
    own_costs = _costs(config, own, recipe, gpu, args.utilisation)
    values = {
        "parameters": n_parameters(config),
        "gpus": args.gpus,
        "gpu": args.gpu,
        "gpu_bytes": gpu.memory,
        "utilisation": args.utilisation,
        "recipe": own_costs,
        "fitting": fitting and _costs(config, fitting, recipe, gpu, args.utilisation),
        "v100_days": {
            "planned": _v100_days(config, recipe, args.utilisation),
            "reported": _reported(recipe),
        },
        "checkpoint_bytes": checkpoint_bytes(config),
        "cache_bytes": cache_bytes(config, own.dtype),
    }
    return Report(_text(args, [name, *changes], recipe, values), values)


def _division(recipe: Recipe, gpus: int, gpu: GPU) -> Division:
    """The recipe's division over `gpus` processes; UserError when they cannot share its batch."""
    data, shard, tensor = recipe.parallel.mesh(gpus)
    recipe.parallel.check_fit(recipe.model_config(1, 1))
    train, groups = recipe.train, data * shard
    if train.batch_size % groups:
        raise UserError(
            f"train.batch_size ({train.batch_size}) must be a multiple of {groups} "
            + (f"groups of {tensor} GPUs" if tensor > 1 else "GPUs")
            + ": parallel.tensor makes groups, or larger ones"
        )
    share = train.batch_size // groups
    rows = min(train.micro_batch_size or share, share)
    dtype = train.precision
    if dtype == "auto":
        dtype = "bfloat16" if "bfloat16" in gpu.flops else "float32"
    if dtype not in gpu.flops:
        raise UserError(f"this GPU has no {dtype}")
    return Division(rows, data, shard, tensor, rows < share, train.activation_checkpointing, dtype)


def _costs(
    config: ModelConfig, division: Division, recipe: Recipe, gpu: GPU, utilisation: float
) -> dict[str, Any]:
    """The memory, FLOPs and days of a run that is divided so."""
    pictures = recipe.train.steps * recipe.train.batch_size
    flops = pictures * computed_flops(config, division)
    gpus = division.data * division.shard * division.tensor
    rate = gpus * gpu.flops[division.dtype] * utilisation
    memory = training_memory(config, division)
    return {
        "division": asdict(division),
        "memory_bytes": {**memory, "total": sum(memory.values())},
        "activations_bytes": {
            "kept": activation_bytes(config, replace(division, checkpointing=False)),
            "checkpointed": activation_bytes(config, replace(division, checkpointing=True)),
        },
        "fits": fits(config, division, gpu),
        "flops": flops,
        "days": flops / rate / SECONDS_A_DAY,
    }


def _v100_days(config: ModelConfig, recipe: Recipe, utilisation: float) -> float:
    """Days that a run takes on one V100, in float32, where nothing is computed twice."""
    flops = recipe.train.steps * recipe.train.batch_size * training_flops(config)
    return float(flops / (GPUS["v100"].flops["float32"] * utilisation) / SECONDS_A_DAY)


def _reported(recipe: Recipe) -> int | None:
    """What OpenAI told of such a run, if it did."""
    shape = recipe.model.resolve(1, 1, causal=True)
    for (preset, size), days in REPORTED.items():
        same = ModelChoice(preset).resolve(1, 1, causal=True) == shape
        if same and size == recipe.data.image_size:
            return days
    return None


def _text(
    args: argparse.Namespace, words: Sequence[str], recipe: Recipe, values: dict[str, Any]
) -> str:
    """Two plans side by side, where the recipe's own does not fit; `words` name the recipe."""
    own, fitting = values["recipe"], values["fitting"]
    plans = [own] if fitting is None or fitting == own else [own, fitting]
    dtype = own["division"]["dtype"]
    share = f"{USABLE:.0%} of its {_giga(values['gpu_bytes'])} GB"
    lines = [
        f"{words[0]} on {args.gpus} {args.gpu}, products in {dtype}",
        "",
        _row("parameters", f"{values['parameters']:,}"),
        _row("steps", f"{recipe.train.steps:,} of {recipe.train.batch_size:,} pictures"),
        _row("checkpoint, GB", _giga(values["checkpoint_bytes"])),
        _row("cache of a picture that is painted, GB", _giga(values["cache_bytes"])),
        "",
        _row("a GPU's memory, GB", "as the recipe says", *["what fits"] * (len(plans) - 1)),
        *(
            _row(f"  {part}", *(_giga(plan["memory_bytes"][part]) for plan in plans))
            for part in ("weights", "gradients", "moments", "copies", "activations", "total")
        ),
        _row(
            "  activations at most, all kept",
            *(_giga(plan["activations_bytes"]["kept"]) for plan in plans),
        ),
        _row(
            "  activations at most, checkpointed",
            *(_giga(plan["activations_bytes"]["checkpointed"]) for plan in plans),
        ),
        _row(f"fits in {share}", *("yes" if plan["fits"] else "no" for plan in plans)),
        _row("FLOPs to the end", *(f"{plan['flops']:.3g}" for plan in plans)),
        _row(
            f"days at {args.utilisation:.0%} of the peak",
            *(_days(plan["days"]) for plan in plans),
        ),
        _row("GPU-days", *(_days(plan["days"] * args.gpus) for plan in plans)),
        _v100_row(values["v100_days"]),
        "",
    ]
    if fitting is None:
        return "\n".join([*lines, "nothing fits: take more GPUs, or larger ones"])
    command = ["igpt", "pretrain", *words, *_words(fitting), "--out", "RUN"]
    how = "torchrun starts a process for each GPU (docs/scaling.md) of:"
    return "\n".join([*lines, how, shlex.join(command)])


def _v100_row(days: dict[str, Any]) -> str:
    """The line of V100-days, with those that OpenAI reported, if it did."""
    reported = f"  ({days['reported']:,} reported)" if days["reported"] else ""
    return _row("V100-days, in float32", _days(days["planned"])) + reported


def _words(plan: dict[str, Any]) -> list[str]:
    """The words of a command line that ask for a plan's division."""
    division = plan["division"]
    words = [f"parallel.data={division['data']}", f"parallel.shard={division['shard']}"]
    if division["tensor"] > 1:
        words.append(f"parallel.tensor={division['tensor']}")
    if division["accumulates"]:
        words.append(f"train.micro_batch_size={division['rows']}")
    words.append(f"train.activation_checkpointing={str(division['checkpointing']).lower()}")
    return words


def _row(name: str, *cells: str) -> str:
    return f"{name:<42}" + "".join(f"{cell:>22}" for cell in cells).rstrip()


def _days(days: float) -> str:
    if days >= 10:
        return f"{days:,.0f}"
    return f"{days:.2g}" if days >= 0.001 else "under 0.001"


def _giga(n_bytes: int) -> str:
    giga = n_bytes / 1e9
    return f"{giga:,.0f}" if giga >= 1000 else f"{giga:.4g}"
