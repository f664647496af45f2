"""The activation in bfloat16, as an operator of PyTorch with a gradient.

Its plain twin is `x * sigmoid(1.702 x)`; `model.quick_gelu` chooses between the two.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from igpt.kernels.build import constant, load_for_bfloat16, threads
from igpt.kernels.operators import define


@constant
def _available() -> bool:
    return load_for_bfloat16("activation") is not None


def gelu_takes(x: Tensor) -> bool:
    """Whether `fast_quick_gelu` takes `x`: bfloat16, on a CPU that computes in bfloat16."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and _available()


def fast_quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x) of bfloat16 x of any shape, where `gelu_takes` says so; rounded once."""
    return torch.ops.igpt.quick_gelu(x)


def _call(name: str, *tensors: Tensor) -> None:
    """Call a function of the library on contiguous tensors of one size."""
    library = load_for_bfloat16("activation")
    assert library is not None
    addresses = (ctypes.c_void_p(x.data_ptr()) for x in tensors)
    size = ctypes.c_int64(tensors[0].numel())
    getattr(library, name)(*addresses, size, threads())


def _quick_gelu(x: Tensor) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    _call("quick_gelu_forward", x, y)
    return y


def _quick_gelu_backward(x: Tensor, y_gradient: Tensor) -> Tensor:
    x, y_gradient = x.contiguous(), y_gradient.contiguous()
    gradient = torch.empty_like(x)
    _call("quick_gelu_backward", x, y_gradient, gradient)
    return gradient


def _like(x: Tensor, y_gradient: Tensor | None = None) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, y_gradient: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.ops.igpt.quick_gelu_backward(x, y_gradient)


define("quick_gelu(Tensor x) -> Tensor", _quick_gelu, _like, _gradient, _save)
define("quick_gelu_backward(Tensor x, Tensor y_gradient) -> Tensor", _quick_gelu_backward, _like)
