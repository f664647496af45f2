"""igpt: Image GPT (Chen et al., 2020), from pictures to pictures.

Names are looked up when they are first used, so that `import igpt` and `igpt --help` are instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from igpt.config import ModelConfig, UserError
    from igpt.model import ImageGPT
    from igpt.palette import Palette
    from igpt.pipeline import Pipeline, load

__version__ = "0.1.0"

_HOMES = {
    "ImageGPT": "model",
    "ModelConfig": "config",
    "Palette": "palette",
    "Pipeline": "pipeline",
    "UserError": "config",
    "load": "pipeline",
}
__all__ = ["ImageGPT", "ModelConfig", "Palette", "Pipeline", "UserError", "load"]


def __dir__() -> list[str]:
    return [*__all__, "sklearn", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "sklearn":  # a room of its own, which imports scikit-learn
        return import_module("igpt.sklearn")
    if name not in _HOMES:
        raise AttributeError(f"module 'igpt' has no attribute '{name}'")
    return getattr(import_module(f"igpt.{_HOMES[name]}"), name)
