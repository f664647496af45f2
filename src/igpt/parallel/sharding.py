"""A model that is split over processes: PyTorch's `fully_shard`, applied from outside.

The unit that is gathered, used and dropped is a block's matrices, in the type of the products. What
is small stays with the root and in float32, as autocast has it on one process: embeddings, norms
and heads. So a run computes the same whether it is split or not.

Tensor parallelism divides what is widest, the MLPs: each process of a group computes a part of the
hidden units, and the parts of the result are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from igpt.config import ParallelConfig, UserError
from igpt.model import ImageGPT
from igpt.parallel.processes import rank, size

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Shard


def split(
    model: ImageGPT, config: ParallelConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Split `model`, still on the meta device, over processes as `config` says.

    It will be computed on `device` with products in `dtype`. Does nothing when every process holds
    the whole model. Raises UserError when `config` is for another number of processes.
    """
    copies, parts, group = config.mesh(size())
    if parts == group == 1:
        return
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    names = ("data", "shard", "tensor")
    processes = init_device_mesh(device.type, (copies, parts, group), mesh_dim_names=names)
    mesh = processes["shard"] if copies == 1 else processes["data", "shard"]
    if group > 1:
        _divide_products(model, processes["tensor"])
    products = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.blocks:
        matrices = [block.get_submodule("attn"), block.get_submodule("mlp")]
        fully_shard(matrices, mesh=mesh, mp_policy=products, shard_placement_fn=_across_the_cut)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "trunk")  # the heads that follow it find the root gathered


def _divide_products(model: ImageGPT, mesh: DeviceMesh) -> None:
    """Give each process of `mesh` as many of every MLP's hidden units; UserError if it cannot."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    hidden = 4 * model.config.n_embd
    if hidden % mesh.size():
        raise UserError(
            f"parallel.tensor ({mesh.size()}) must divide the {hidden} hidden units of an MLP"
        )
    for block in model.blocks:
        plan = {"fc": ColwiseParallel(), "proj": RowwiseParallel()}
        parallelize_module(block.get_submodule("mlp"), mesh, plan)


def _across_the_cut(parameter: Tensor) -> Shard | None:
    """Along which dimension `fully_shard` cuts: the other one of a matrix that is cut in rows.

    A part is then one rectangle, which is what checkpoints are written and read in.
    """
    if is_split(parameter) and parameter.placements[0].is_shard(0) and parameter.ndim == 2:
        from torch.distributed.tensor import Shard

        return Shard(1)
    return None


def checkpoint_activations(model: ImageGPT) -> None:
    """Let every block keep its input only, and compute the rest again when gradients need it."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class DrawOnProcessor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Where normal draws are those of the whole tensor on the processor, wherever it is and is cut.

    So `init_weights` gives every process its part of the weights that one process would have. One
    tensor at a time is whole, no more.
    """

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        target = args[0] if args else None
        if func is torch.ops.aten.normal_.default and isinstance(target, Tensor):
            copy_whole(target, func(torch.empty(target.shape), *args[1:], **(kwargs or {})))
            return target
        return func(*args, **(kwargs or {}))


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds a part of `tensor` only."""
    if size() == 1:
        return False
    # Half a second, which most commands can do without.
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The processes that hold parts of `tensor`; None when this one has it whole."""
    return tensor.device_mesh if is_split(tensor) else None


def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copy `whole` into `target`, or this process's part of it when `target` is split."""
    if is_split(target):
        from torch.distributed.tensor import distribute_tensor

        placed = whole.to(target.device, target.dtype)
        whole = distribute_tensor(placed, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(whole)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if is_split(tensor) else tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` by name. All processes call it; of those that they hold parts of, the first one
    gets the whole, in memory, and the others nothing.
    """
    found = {}
    for name, tensor in tensors.items():
        if not is_split(tensor):
            found[name] = tensor
            continue
        gathered = tensor.full_tensor()
        if rank() == 0:
            found[name] = gathered.cpu()
    return found
