"""A model that is split over processes: PyTorch's `fully_shard`, applied from outside.

A block's matrices are gathered, used and dropped together, in the type of the products. Embeddings,
norms and heads are small: they belong to the root unit and stay in float32, as under autocast on
one process. So a run computes the same whether it is split or not.

Tensor parallelism divides the widest part, the MLPs: each process of a group computes a part of the
hidden units, and the parts of the result are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from igpt.config import ModelConfig, ParallelConfig
from igpt.model import ImageGPT
from igpt.parallel.processes import rank, size

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def build(
    shape: ModelConfig,
    config: ParallelConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    checkpointing: bool = False,
) -> ImageGPT:
    """A model on `device`, split over processes as `config` says; its weights are not set yet.

    Products are in `dtype`; with `checkpointing` only the blocks' inputs are kept for the backward
    pass. No process ever holds the whole of a split model, not even here. Raises UserError when
    `config` is for another number of processes.
    """
    with torch.device("meta"):
        model = ImageGPT(shape)
    if checkpointing:
        checkpoint_activations(model)
    split(model, config, device, dtype)
    return model.to_empty(device=device)


def split(
    model: ImageGPT, config: ParallelConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Split `model`, still on the meta device, over processes as `config` says.

    The model will run on `device`, with products in `dtype`. Does nothing when every process is to
    hold the whole model. Raises UserError when `config` is for another number of processes.
    """
    copies, parts, tensor = config.mesh(size())
    if parts == tensor == 1:
        return
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    products = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    copied = {"data": copies} if copies > 1 else {}
    # The processes of a tensor group compute everything but the MLPs identically. Those weights are
    # sharded over the group and not replicated: replicas with gradients of their own could drift
    # apart.
    mesh = _mesh({**copied, "held": parts * tensor}, config, device)
    if tensor > 1:
        mlps = _mesh({**copied, "shard": parts, "tensor": tensor}, config, device)
        _divide_products(model, mlps["tensor"])
    for block in model.blocks:
        matrices = [block.attn, block.mlp]
        if tensor > 1:
            fully_shard(matrices.pop(), mesh=mlps[*copied, "shard"], mp_policy=products)
        fully_shard(matrices, mesh=mesh, mp_policy=products)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for method in ("trunk", "features"):  # they gather the root, and the heads after them use it
        register_fsdp_forward_method(model, method)


def _mesh(sizes: Mapping[str, int], config: ParallelConfig, device: torch.device) -> DeviceMesh:
    """A mesh of all processes in these `sizes`; they wait for each other `config.timeout` s."""
    mesh = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    for name in sizes:
        timeout = timedelta(seconds=config.timeout)
        dist.distributed_c10d._set_pg_timeout(timeout, mesh[name].get_group())
    return mesh


def _divide_products(model: ImageGPT, mesh: DeviceMesh) -> None:
    """Give each process of `mesh` an equal share of every MLP's hidden units."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    for block in model.blocks:
        plan = {"fc": ColwiseParallel(), "proj": RowwiseParallel()}
        parallelize_module(block.mlp, mesh, plan)


def checkpoint_activations(model: ImageGPT) -> None:
    """Let every block keep its input only, and recompute the rest in the backward pass."""
    for block in model.blocks:
        block.forward = partial(  # type: ignore[method-assign]
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )  # nothing in a block is random


def draw_whole(generator: torch.Generator) -> Callable[[Tensor, float], None]:
    """How `init_weights` draws a tensor: whole on the CPU, of which this process keeps its part.

    So the weights are the same on any device, and every process has its part of those that a
    process alone would have. Only one tensor at a time exists whole.
    """

    def normal(target: Tensor, std: float) -> None:
        copy_whole(target, torch.empty(target.shape).normal_(std=std, generator=generator))

    return normal


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds only a part of `tensor`."""
    if size() == 1:
        return False
    # Imported here: it takes half a second, and most commands do not need it.
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def copies_of(tensor: Tensor) -> int:
    """How many processes, with this one, hold the same part of a weight or gradient `tensor`."""
    if not is_split(tensor):
        return size()
    mesh = tensor.device_mesh
    places = enumerate(tensor.placements)
    return math.prod(mesh.size(i) for i, placement in places if placement.is_replicate())


def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copy `whole` into `target`, or this process's part of it when `target` is split."""
    if is_split(target):
        from torch.distributed.tensor import distribute_tensor

        placed = whole.to(target.device, target.dtype)
        whole = distribute_tensor(placed, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(whole)


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process holds; all of it when it is not split."""
    return tensor.to_local() if is_split(tensor) else tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole `tensors`, by name; all processes call it.

    The first process has them, those that were split in CPU memory; the others have none.
    """
    found = {}
    for name, tensor in tensors.items():
        gathered = tensor.full_tensor().cpu() if is_split(tensor) else tensor
        if rank() == 0:
            found[name] = gathered
    return found
