"""Gradients that are averages over all processes, by PyTorch's own means."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from igpt.parallel.processes import size


def average_gradients(module: nn.Module) -> nn.Module:
    """`module`, to be called in its place, with gradients averaged over all processes.

    Every process starts from the first one's weights.
    """
    if size() == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def accumulate(module: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Where a micro-batch goes through `module`: gradients are exchanged after the `last` only."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()
