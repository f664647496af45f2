"""The shipped recipes, and how to read any: YAML files with the sections of `config.Recipe`.

A recipe is merged as defaults < file < command line, and the result is saved with the run, so that
the run can be repeated. `igpt pretrain --help` reads this module, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from igpt.config import Recipe, UserError, first_line

if TYPE_CHECKING:
    from omegaconf import DictConfig


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    files = resources.files("igpt.recipes").iterdir()
    return tuple(sorted(f.name[: -len(".yaml")] for f in files if f.name.endswith(".yaml")))


def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe, or of a file.

    Raises UserError when there is neither.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"no recipe file {name}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is not a YAML text file") from error
        if not text.strip():
            raise UserError(f"recipe {name} is empty")
        return text
    if name not in shipped_recipes():
        shipped = ", ".join(shipped_recipes())
        raise UserError(f"unknown recipe '{name}', expected a .yaml file or one of: {shipped}")
    return (resources.files("igpt.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Merge defaults < the recipe `name` (shipped or a file) < `overrides` ("train.lr=0.003").

    Raises UserError that names the field at fault.
    """
    return parse_recipe(recipe_text(name), overrides, name)


def parse_recipe(text: str, overrides: Sequence[str], name: str) -> Recipe:
    """As `load_recipe`, from the YAML text; `name` is for messages."""
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        written = OmegaConf.create(text)
        if not isinstance(written, DictConfig):
            raise UserError(f"recipe {name}: expected `field: value` lines")
        asked = parse_overrides(overrides)
        if OmegaConf.select(asked, "model.preset") is not None:
            written.pop("model", None)  # its sizes would stand above those of the preset
        merged = OmegaConf.merge(_defaults(), written, asked)
        recipe = OmegaConf.to_object(merged)
    except AssertionError as error:  # of OmegaConf, for a number in place of fields
        raise UserError(f"recipe {name}: expected `field: value` lines") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"recipe {name} is not valid YAML{where}") from error
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"recipe {name}: {_complaint(error)}") from error
    assert isinstance(recipe, Recipe)
    if recipe.palette.path and OmegaConf.select(asked, "palette.colors") is not None:
        raise UserError(
            f"the palette {recipe.palette.path} has its own colours: palette.colors is for fitting "
            "one"
        )
    return recipe


@cache
def _defaults() -> DictConfig:
    """What recipes are merged into, which copies it."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(Recipe)


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """Fields by section of overrides like "train.lr=0.003".

    Values are YAML, but a text field takes its value as it is written: else the folder 2020_01
    would become the number 202001. Only null still means none there. Raises UserError for a word
    without "=", and for a value that is no YAML.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    texts, found = _text_fields(Recipe), OmegaConf.create()
    for item in overrides:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"expected an override like train.lr=0.003, got '{item}'")
        try:
            if name in texts and value != "null":
                OmegaConf.update(found, name, value)
            else:
                found.merge_with_dotlist([item])
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"cannot read '{item}': {first_line(error)}") from error
    return found


@cache
def _text_fields(section: type) -> frozenset[str]:
    """Dotted names of the fields that hold text, below a section."""
    found: set[str] = set()
    for name, hint in get_type_hints(section).items():
        kinds: set[type] = {hint, *get_args(hint)}  # for `str | None` also str and None
        found |= {name} if str in kinds else set()
        for inner in filter(is_dataclass, kinds):
            found |= {f"{name}.{field}" for field in _text_fields(inner)}
    return frozenset(found)


def _complaint(error: Exception) -> str:
    """OmegaConf's error of several lines in one: the field, then the complaint."""
    complaint = first_line(error).rstrip()
    key = getattr(error, "full_key", None)
    parent: Any = getattr(error, "object_type", None)
    if isinstance(key, str) and "not in" in complaint and is_dataclass(parent):
        names = ", ".join(f.name for f in fields(parent))
        return f"unknown field '{key}', expected one of: {names}"
    return f"{key}: {complaint}" if key else complaint


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe, resolved, as YAML that `parse_recipe` reads back to an equal one."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def with_overrides(recipe: Recipe, overrides: Sequence[str], name: str) -> Recipe:
    """The recipe with `overrides` like "train.lr=0.003"; UserError as `load_recipe`."""
    return parse_recipe(recipe_yaml(recipe), overrides, name)


def flat_fields(recipe: Recipe) -> dict[str, Any]:
    """Dotted names of all fields, and their values."""

    def flat(section: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in section.items():
            inner = isinstance(value, dict)
            found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
        return found

    return flat(asdict(recipe), "")


# How the names of fields begin that say how a run is computed and reported, not what it computes: a
# run can be resumed with other values of these.
CHANGEABLE_ON_RESUME = (
    "parallel.",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.compile",
    "train.checkpoint_every",
    "train.log_every",
    "train.wandb",
)


def differing_fields(a: Recipe, b: Recipe) -> list[str]:
    """Dotted names of the fields in which two recipes differ."""
    left, right = flat_fields(a), flat_fields(b)
    return [name for name in left | right if left.get(name) != right.get(name)]
