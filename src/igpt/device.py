"""The one place that decides where and in what precision the model computes."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from igpt.config import PRECISIONS, UserError, first_line

CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")  # bytes that a container may take, on Linux


def default_device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_device(name: str | torch.device | None) -> torch.device:
    """The processor or GPU of that name, or `default_device`; UserError if it is not here."""
    if name is None:
        return default_device()
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such name; PyTorch built without it
        raise UserError(f"no device '{name}' here: {first_line(error)}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"the device must be cpu or cuda, or a GPU's number, got '{name}'")
    return device


def join_device(local_rank: int) -> torch.device:
    """The device of this process, the `local_rank`-th of its machine; `default_device` from now.

    Raises UserError where the machine has fewer GPUs than processes.
    """
    device = default_device()
    if device.type == "cuda":
        if local_rank >= (count := torch.cuda.device_count()):
            raise UserError(f"more processes than GPUs on this machine, which has {count}")
        torch.cuda.set_device(local_rank)
    return device


def communication(device: torch.device) -> str:
    """What carries tensors between processes: gloo from memory, NCCL from GPU to GPU as well."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def check_precision(precision: str, known: Sequence[str] = PRECISIONS) -> None:
    """UserError for a precision of another name."""
    if precision not in known:
        raise UserError(f"precision must be one of {', '.join(known)}, got '{precision}'")


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of the products: "auto" takes bfloat16 where the device has it in hardware.

    UserError for a precision of another name.
    """
    check_precision(precision)
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16" or _has_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):  # which it asks
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision: float32 weights, products in `dtype`, whatever is set around it."""
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype)


def ready_to_copy(tensor: Tensor) -> Tensor:
    """`tensor` in pinned memory, so that copying it to the GPU overlaps with computing.

    Unchanged without a GPU, and where it is there already.
    """
    waits = default_device().type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory() if waits else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, by a copy that overlaps with computing."""
    held = ready_to_copy(tensor) if device.type == "cuda" else tensor
    return held.to(device, non_blocking=True)


def replays_steps(device: torch.device) -> bool:
    """Whether `record_step` pays: where a small step waits for the one who starts its kernels.

    `IGPT_GRAPHS=0` in the environment says that it does not.
    """
    return device.type == "cuda" and os.environ.get("IGPT_GRAPHS") != "0"


_recording = Lock()  # a GPU records one graph at a time


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a GPU's steps are recorded: cuBLAS keeps a workspace for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def record_step(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """`step` as a CUDA graph, which the GPU repeats without being told its kernels one by one.

    It reads and writes the very same memory each time, so its inputs are put where they were when
    it was recorded, and its result is where the last one was. It is called once more before, since
    libraries make their plans then, and must bear that.
    """
    with _recording:
        side = _side_stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may put the next batch into pinned memory meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def replay_batches(
    function: Callable[..., Tensor], device: torch.device, alone: bool
) -> Callable[..., Tensor]:
    """`function` of tensors on `device`, for many calls with tensors of the same shapes.

    On a GPU the third call of some shapes records it and those that follow replay it, or small
    batches would wait for the processor; not where several processes talk to each other in it. Its
    own state must lie in place, on the GPU, when the first call is over.
    """
    if not (alone and replays_steps(device)):
        return function
    calls = Counter[tuple[torch.Size, ...]]()  # by the shapes of their inputs
    recorded = dict[tuple[torch.Size, ...], Callable[..., Tensor]]()

    def call(*inputs: Tensor) -> Tensor:
        shapes = tuple(x.shape for x in inputs)
        calls[shapes] += 1
        if calls[shapes] < 3:  # recording takes as long as some batches
            return function(*inputs)
        if shapes not in recorded:
            recorded[shapes] = _record(function, inputs, device)
        return recorded[shapes](*inputs)

    return call


def _record(
    function: Callable[..., Tensor], like: Sequence[Tensor], device: torch.device
) -> Callable[..., Tensor]:
    places = [x.clone() for x in like]
    replay = record_step(lambda: function(*places), device)

    def call(*inputs: Tensor) -> Tensor:
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        return replay().clone()

    return call


def compile_training(
    step: Callable[..., Tensor], device: torch.device, alone: bool
) -> Callable[..., Tensor]:
    """`step`, forward and backward, through the compiler; `step` itself where that fails.

    On a GPU its kernels are recorded as CUDA graphs too, or small models would wait for the
    processor. Not where several processes exchange gradients during the backward pass.
    """
    from torch._dynamo.exc import ShortenTraceback  # slow to import, as torch.compile is

    graphs = device.type == "cuda" and alone
    fastest = torch.compile(step, mode="reduce-overhead" if graphs else None)

    def compiled(*inputs: Tensor) -> Tensor:
        nonlocal fastest
        try:
            return fastest(*inputs)
        except ShortenTraceback as error:  # no C++ compiler, Python's headers, Triton or GPU for it
            warnings.warn(f"train.compile is left out: {first_line(error)}", stacklevel=2)
            fastest = step
            return fastest(*inputs)

    return compiled


def begin_step() -> None:
    """Before each optimizer step: what CUDA graphs of the last one hold may be overwritten."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def decoding_memory(device: torch.device) -> int:
    """Bytes that the caches of pictures decoded side by side may take.

    Of a GPU a fixed part, whatever is free, so that the same call makes the same batches.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return 4 * 2**30


def total_memory() -> int:
    """Bytes of this machine's memory, or of the container's that we are in, as Linux limits it."""
    import psutil

    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # no cgroup of version 2, or "max"
        total = min(total, int(CGROUP_MEMORY.read_text()))
    return total


def require_memory(needed: int, instead: str) -> None:
    """UserError when features of `needed` bytes are more than all memory: what to do `instead`."""
    if needed > total_memory():
        raise UserError(
            f"the features take {needed / 1e9:,.1f} GB, and this machine has "
            f"{total_memory() / 1e9:,.1f}: {instead}"
        )


def reuse_memory() -> None:
    """Ask the C library to keep what is freed, instead of handing it back to the system.

    A step frees and takes the same hundreds of megabytes; pages that are handed back come in anew,
    zeroed one by one, which takes a seventh of a training step or more (docs/performance.md). Does
    nothing where the C library is not glibc, and with `IGPT_REUSE_MEMORY=0` in the environment: a
    server or a notebook may want back what it does not use any more.
    """
    if sys.platform == "win32" or os.environ.get("IGPT_REUSE_MEMORY") == "0":
        return
    trim_threshold, mmap_threshold = -1, -3  # names of mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc takes
