"""A fit by SGD that is under way, on the disk: one file, from which a killed one goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from igpt.config import UserError
from igpt.disk import remove_left, write_atomically
from igpt.parallel.processes import on_first, require_same, together

UNFINISHED = "unfinished.safetensors"  # in the folder of the probe


@dataclass(frozen=True)
class Unfinished:
    """Where a fit is kept, and what it is of: JSON that must be the same when it goes on."""

    path: Path
    about: str

    def load(self, tensors: Mapping[str, Tensor]) -> int:
        """Fill `tensors` with what is kept; the steps done, 0 where nothing is.

        UserError for a file that is broken, or of a fit of something else.
        """
        with together():
            done = self._load(tensors)
        require_same("fits that were cut short", done)
        return done

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the state after `step` steps, which all processes have, in place of the one before.

        UserError when the disk does not take it.
        """
        told = {"step": str(step), "about": self.about}

        def write(path: Path) -> None:
            held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(held, path, told)

        def replace() -> None:
            remove_left(self.path.parent, self.path.name)
            write_atomically(self.path, write)

        on_first(replace)

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor]) -> int:
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                told = file.metadata() or {}
                if told.get("about") != self.about:
                    raise UserError(f"{self.path} is of another fit{self._difference(told)}")
                for name, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(name))
                return int(told["step"])
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.path} is broken: {error}") from error

    def _difference(self, told: Mapping[str, str]) -> str:
        """In which words of `about` it differs."""
        theirs, ours = json.loads(told.get("about", "{}")), json.loads(self.about)
        names = [name for name in ours if theirs.get(name) != ours[name]]
        return f": its {', '.join(names)} differ" if theirs else ""
