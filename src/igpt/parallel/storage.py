"""Tensors on the disk that many processes write and read at once, each its own part.

PyTorch's distributed checkpoints, with their safetensors writer and reader: one file for each
process, or several where it holds much. The files' headers say how each tensor was cut, so another
number of processes, or another way to split, can read it back. (PyTorch's default reader unpickles
its metadata; this one does not.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from igpt.config import UserError
from igpt.parallel.processes import background_group, max_over_processes, rank, size
from igpt.parallel.sharding import is_split, local

# A file's largest size, unless one tensor is larger: to write it, the library holds it twice.
FILE_BYTES = 2**28


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every number of every tensor is finite, on all processes; all call it."""
    return not max_over_processes(
        not all(bool(local(t).isfinite().all()) for t in tensors.values())
    )


class AsyncSave:
    """Writes tensors to the disk while the processes do other work; all make the same calls."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Copy whole or split tensors to memory, and begin to write the copies into `folder`.

        A tensor that every process holds whole is written once.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        writer = HuggingFaceStorageWriter(str(folder), _files(contiguous), save_distributed=True)
        writer.per_thread_copy_ahead = 0  # all is in memory; its thread would begin work on GPU 0
        _expect_one_process()
        self._written: Future[Any] = async_save(  # type: ignore[assignment]
            _own(contiguous),
            storage_writer=writer,
            process_group=background_group(),
            no_dist=size() == 1,
        )

    def done(self) -> bool:
        """Whether all processes have stopped writing."""
        return not max_over_processes(not self._written.done())

    def finish(self) -> None:
        """Wait until all is on the disk; UserError for all when one could not write."""
        _run(self._written.result)


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this process writes: its parts of split tensors, and a share of the whole ones.

    The library copies to memory all that it is given, and only then leaves out what others write.
    """
    loads = [0] * size()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_split(tensor):
            own[name] = tensor
            continue
        writer = loads.index(min(loads))
        loads[writer] += tensor.nbytes
        if writer == rank():
            own[name] = tensor
    return own


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number, from 1, of each tensor's file; the library uses the first process's for all."""
    files, number, held = {}, 1, 0
    for name, tensor in tensors.items():
        more = local(tensor).nbytes
        if held and held + more > FILE_BYTES:
            number, held = number + 1, 0
        held += more
        files[name] = number
    return files


def load_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors`, each whole or split, from `folder`; all processes call it.

    Raises UserError for all when one cannot read, and when a name is missing.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    state = {name: tensor.detach() for name, tensor in tensors.items()}
    _expect_one_process()
    _run(lambda: load(state, storage_reader=reader, no_dist=size() == 1))


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """The names, shapes and types of the tensors in `folder`, as tensors on the meta device.

    Raises UserError for a folder with a file that is truncated or not a safetensors file.
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


def _expect_one_process() -> None:
    """Silence PyTorch's "torch.distributed is disabled", which is expected with one process.

    A global filter, since the warning also comes from the library's background thread.
    """
    warnings.filterwarnings("ignore", "torch.distributed is disabled")


def _run(act: Callable[[], object]) -> None:
    """Call `act`, and raise one error for those that the library collects from all processes."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        act()
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        expected = (OSError, SafetensorError)
        raise next(
            (cause for cause in causes if not isinstance(cause, expected)),  # our bug: show it
            UserError(str(causes[0])),
        ) from error
