"""A step over all processes, with PyTorch's own tools (DDP and FSDP): gradients are averaged and
clipped, and of a split model is compiled what can be.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from igpt.device import compile_training
from igpt.model import ImageGPT
from igpt.parallel.processes import size, sum_over_processes_
from igpt.parallel.sharding import copies_of, is_split, local

CLIP_EPS = 1e-6  # as in PyTorch's clip_grad_norm_


def average_gradients(module: nn.Module) -> nn.Module:
    """The module to call in place of `module`, so that gradients are averaged over all processes.

    A split model (FSDP) averages by itself and is returned as it is. Any other is wrapped, and
    every process then starts from the first one's weights.
    """
    if size() == 1 or any(map(is_split, module.parameters())):
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def compile_parts(model: ImageGPT, device: torch.device) -> None:
    """Compile the parts of a split model between which its weights are gathered, each by itself.

    The compiler cannot trace the gathering. Where activations are checkpointed it would therefore
    leave out all of a block. Does nothing for a model that every process holds whole.
    """
    if not any(map(is_split, model.parameters())):
        return
    for block in model.blocks:
        for part in (block.attn, block.mlp):
            part.forward = compile_training(part.forward, device, alone=False)  # type: ignore[method-assign]


def accumulate(module: nn.Module, last: bool) -> AbstractContextManager[object]:
    """The context for one micro-batch's passes; gradients are exchanged after the `last` only."""
    for part in module.children():
        if synchronise := getattr(part, "set_requires_gradient_sync", None):  # FSDP's
            synchronise(last)
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def clip_gradients(model: nn.Module, largest: float) -> None:
    """Scale the gradients of a model, however it is split, so that their norm is `largest` at most.

    PyTorch's `clip_grad_norm_` only handles parameters that are all split in the same way.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not any(map(is_split, gradients)):
        clip_grad_norm_(model.parameters(), largest)
        return
    squares = [local(g).float().square().sum() / copies_of(g) for g in gradients]
    norm = sum_over_processes_(torch.stack(squares).sum()).sqrt()
    factor = (largest / (norm + CLIP_EPS)).clamp(max=1)
    for gradient in gradients:
        local(gradient).mul_(factor)
