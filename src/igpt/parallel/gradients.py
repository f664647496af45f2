"""Gradients that are averages over all processes, by PyTorch's own means."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeGuard

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from igpt.parallel.processes import size
from igpt.parallel.sharding import is_split, mesh_of

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def average_gradients(module: nn.Module) -> nn.Module:
    """What to call in `module`'s place, so that gradients are averaged over all processes.

    A model that is split takes care of that itself; of one that is not, every process starts from
    the first one's weights.
    """
    if size() == 1 or any(map(_is_split, module.modules())):
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def accumulate(module: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Where a micro-batch goes through `module`: gradients are exchanged after the `last` only."""
    for part in filter(_is_split, module.children()):
        part.set_requires_gradient_sync(last)
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale the gradients of a model, however it is split, so that their norm is `largest` at most.

    PyTorch's `clip_grad_norm_` takes parameters that are cut alike; those of a model with tensor
    parallelism are not.
    """
    by_mesh: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_mesh.setdefault(mesh_of(parameter), []).append(parameter)
    norms = []
    for alike in by_mesh.values():
        norm = get_total_norm([p.grad for p in alike if p.grad is not None])
        norms.append(norm.full_tensor() if is_split(norm) else norm)
    for alike in by_mesh.values():
        clip_grads_with_norm_(alike, largest, get_total_norm(norms))


def _is_split(module: nn.Module) -> TypeGuard[FSDPModule]:
    if size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule  # half a second to import

    return isinstance(module, FSDPModule)
