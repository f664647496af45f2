"""Tensors on the disk that many processes write and read at once, each its part.

PyTorch's distributed checkpoints with their safetensors writer and reader, a file a process. What
a tensor was cut into stands in the files' headers, so another number of processes, or another way
to split, reads it back. (Their usual reader unpickles its metadata; this one does not.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from igpt.config import UserError
from igpt.parallel.processes import largest, size
from igpt.parallel.sharding import local


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every number of every tensor is, on all processes, which all call it."""
    return not largest(not all(bool(local(t).isfinite().all()) for t in tensors.values()))


def save_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write whole or split tensors into `folder`, on the disk when it returns; all call it.

    What every process has whole is written once. Raises UserError for all when one cannot write.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    _run(lambda: save(contiguous, storage_writer=writer, no_dist=size() == 1))


def load_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors`, whole or split as they are, from `folder`; all processes call it.

    Raises UserError for all when one cannot read, and when a name is missing.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    state = {name: tensor.detach() for name, tensor in tensors.items()}
    _run(lambda: load(state, storage_reader=reader, no_dist=size() == 1))


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """What `folder` holds, on the meta device: names, shapes and types.

    Raises UserError for a folder with a file that is truncated or no safetensors file.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} is truncated or not safetensors files ({error})") from error
    return {
        name: torch.empty(saved.size, dtype=saved.properties.dtype, device="meta")
        for name, saved in found.items()
    }


def _run(act: Callable[[], object]) -> None:
    """Let the library act, and make one error of those it collects from all processes."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process
            act()
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        expected = (OSError, SafetensorError)
        raise next(
            (cause for cause in causes if not isinstance(cause, expected)),  # a bug of ours
            UserError(str(causes[0])),
        ) from error
