"""Attention in bfloat16 or float32, as an operator of PyTorch with a gradient.

Its plain twin is `scaled_dot_product_attention`; `attention.attend` chooses between the two.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from igpt.kernels.build import constant, load, load_for_bfloat16, threads
from igpt.kernels.operators import define

MAX_WIDTH = 256  # of a head; the kernel has no limit, but wider heads are not tested


class _Strided(ctypes.Structure):
    """A tensor [B, H, T, D] as the kernel takes it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("picture", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("token", ctypes.c_int64),
    )

    @classmethod
    def of(cls, x: Tensor) -> Any:
        picture, head, token, _ = x.stride()
        return ctypes.byref(cls(x.data_ptr(), picture, head, token))


def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernel for tensors of this type; None where there is none."""
    if dtype == torch.bfloat16:
        return load_for_bfloat16("attention")
    return load("attention_float32") if dtype == torch.float32 else None


@constant
def _has_library(dtype: torch.dtype) -> bool:
    return _library(dtype) is not None


def attention_takes(query: Tensor, key: Tensor) -> bool:
    """Whether `fast_attention` is there and takes these: T queries of T keys."""
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype
        and query.shape == key.shape
        and query.shape[-1] <= MAX_WIDTH
        and not torch.compiler.is_exporting()  # elsewhere there are PyTorch's operators only
        and _has_library(query.dtype)
    )


def fast_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of [B, H, T, D], where `attention_takes` says so.

    Products are added in float32; in bfloat16 probabilities are rounded to it.
    """
    return torch.ops.igpt.attention(query, key, value, causal)[0]


def _attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The result [B, H, T, D], and what its gradient needs, float32 [B, H, T].

    That is the log of each row's sum of exponentials, which in float32 is to the base of 2.
    """
    library = _library(query.dtype)
    assert library is not None
    query, key, value = (_rows(x) for x in (query, key, value))
    out, log_sum = _outputs(query)
    B, H, T, D = query.shape
    library.attention_forward(
        *(_Strided.of(x) for x in (query, key, value, out)),
        ctypes.c_void_p(log_sum.data_ptr()),
        *(B, H, T, D, int(causal), threads()),
    )
    return out, log_sum


def _attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    out_gradient: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each [B, H, T, D]."""
    library = _library(query.dtype)
    assert library is not None
    query, key, value, out, out_gradient = (
        _rows(x) for x in (query, key, value, out, out_gradient)
    )
    gradients = _gradients(query)
    B, H, T, D = query.shape
    library.attention_backward(
        *(_Strided.of(x) for x in (query, key, value, out, out_gradient)),
        ctypes.c_void_p(log_sum.data_ptr()),
        *(_Strided.of(x) for x in gradients),
        *(B, H, T, D, int(causal), threads()),
    )
    return gradients


def _rows(x: Tensor) -> Tensor:
    """`x` with its last dimension contiguous; the kernel takes any other strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    B, H, T, D = query.shape
    out = query.new_empty(B, T, H, D).transpose(1, 2)  # laid out as the next product reads it
    return out, query.new_empty(B, H, T, dtype=torch.float32)


def _gradients(query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, H, T, D = query.shape
    q, k, v = (query.new_empty(B, T, H, D).transpose(1, 2) for _ in range(3))
    return q, k, v


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Any) -> None:
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx: Any, out_gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    gradients = torch.ops.igpt.attention_backward(*ctx.saved_tensors, out_gradient, ctx.causal)
    return *gradients, None


define(
    "attention(Tensor query, Tensor key, Tensor value, bool causal) -> (Tensor, Tensor)",
    _attention,
    lambda query, *_: _outputs(query),
    _gradient,
    _save,
)
define(
    "attention_backward(Tensor query, Tensor key, Tensor value, Tensor out, Tensor log_sum, "
    "Tensor out_gradient, bool causal) -> (Tensor, Tensor, Tensor)",
    _attention_backward,
    lambda query, *_: _gradients(query),
)
