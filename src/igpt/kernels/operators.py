"""Functions of this folder as operators of PyTorch, which `torch.compile` does not look into.

`torch.library.custom_op` does the same, but imports the compiler with the first call: that costs
every command a second, and most compile nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY: Any = torch.library.Library("igpt", "DEF")  # type: ignore[no-untyped-call]


def define(
    schema: str,
    compute: Callable[..., Any],
    shape: Callable[..., Any],
    gradient: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
) -> None:
    """Make `torch.ops.igpt.NAME` of a `schema` like "NAME(Tensor x) -> Tensor".

    `compute` is the CPU implementation; `shape` returns empty results of the right shape, for
    `torch.compile`. `save` stores in a context what `gradient` needs; `gradient` takes the context
    and the gradients of the results, and returns those of the inputs.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, compute, "CPU")
    torch.library.register_fake(f"igpt::{name}", shape, lib=_LIBRARY)
    if gradient is not None:
        torch.library.register_autograd(f"igpt::{name}", gradient, setup_context=save, lib=_LIBRARY)
