"""Model folders: weights in the files that `transformers` writes, and folders on the Hub.

Weights are safetensors, or `pytorch_model.bin` read by PyTorch's restricted reader, which builds
tensors and refuses everything else; one file or several with an index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from igpt.config import UserError, first_line

SAFETENSORS = "model.safetensors"
# The files of a Hub repository that are fetched; a star matches subfolders too, like the probe's.
PATTERNS = ["*.json", "*.safetensors", "*.yaml", "*.npy", "metrics.jsonl"]
OLDER = "pytorch_model*.bin"  # the same weights again, where there are safetensors
IGNORED = ["checkpoints/*"]  # in a run uploaded by hand; each is three times the weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError when it is missing, truncated or not one."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"no weights: {path} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in a safetensors file's header; UserError when it is missing or broken."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from error


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """All weights of a model folder, and the file that names or holds them.

    Raises UserError when there are none, or one is broken, or holds more than tensors.
    """
    kinds: tuple[tuple[str, Callable[[Path], dict[str, Tensor]]], ...] = (
        (SAFETENSORS, read_tensors),
        ("pytorch_model.bin", _read_bin),
    )
    for name, read in kinds:
        path, index = folder / name, folder / _index(name)
        if path.is_file():
            return read(path), path
        if index.is_file():
            parts = [read(folder / part) for part in _parts(index)]
            return {name: tensor for part in parts for name, tensor in part.items()}, index
    raise UserError(f"no weights: {folder / SAFETENSORS} does not exist")


def _index(name: str) -> str:
    """The name of the index of weights that are in several files in place of one called `name`."""
    return f"{name}.index.json"


def _parts(index: Path) -> list[str]:
    """The files that an index names, each once; they lie beside it."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weights") from error
    if any(Path(str(name)).name != name for name in names):
        raise UserError(f"{index} names files outside its folder")
    return sorted(names)


def _read_bin(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no weights: {path} does not exist")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise
        raise UserError(
            f"{path} is truncated or holds more than tensors ({first_line(error)})"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UserError(f"{path} holds no tensors by name")
    return found


def local_folder(path: str | Path, **options: Any) -> Path:
    """The folder `path`, or that of the Hub model `path`; `options` are those of `fetch_folder`.

    `owner/name` is a Hub model unless there is such a folder, or a folder `owner`.
    """
    folder = Path(path)
    # A path's own `str` has backslashes on Windows. A string keeps its `./`: it is no id then.
    model_id = path.as_posix() if isinstance(path, Path) else path
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", model_id) is not None
    if folder.exists() or not is_id or folder.parent.exists():
        return folder
    return fetch_folder(model_id, **options)


def fetch_folder(
    model_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a Hub model, downloaded with progress unless it is in the cache.

    Raises UserError, one line, when there is no such model, no access or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    fetch = partial(
        snapshot_download,
        model_id,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        ignore_patterns=IGNORED,
    )
    try:
        folder = Path(fetch(allow_patterns=PATTERNS))
        if not any((folder / name).is_file() for name in (SAFETENSORS, _index(SAFETENSORS))):
            folder = Path(fetch(allow_patterns=[*PATTERNS, OLDER]))
    except HFValidationError as error:
        raise UserError(f"'{model_id}' is no folder and no id of a Hub model") from error
    except GatedRepoError as error:
        raise UserError(f"{model_id} asks for an accepted licence: log in on the Hub") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{model_id} has no revision '{revision}'") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"no model '{model_id}' on the Hub, or no access to it") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"no folder {model_id}, and as a Hub model it is not in the cache, and the Hub is out "
            "of reach"
        ) from error
    except Exception as error:  # other errors of the Hub, or of the HTTP library that it uses
        raise UserError(f"cannot fetch {model_id}: {first_line(error)}") from error
    return folder
