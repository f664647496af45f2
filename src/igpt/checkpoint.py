"""The run directory: what lies where in it, and the only writer of its checkpoints.

    run/
      config.json, model.safetensors, preprocessor_config.json   the best model
      recipe.yaml, palette.npy                         resolved recipe; the two repeat the run
      metrics.jsonl, tensorboard/, figures/
      probe/                                           what `igpt probe` found, later
      checkpoints/step-00001000/, checkpoints/latest   training state, and a pointer to it
      .lock                                            held while it is trained

A checkpoint is written into a folder of another name, in the background, flushed to the disk and
renamed; then the pointer is replaced. A reader sees a whole checkpoint or the one before. Nothing
is pickled.

Of several processes, all call what writes: the first one writes what is one file, and every one its
part of a checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from igpt.config import Recipe, Say, UserError
from igpt.disk import flush, read_json, remove_left, write_json, write_text
from igpt.folder import RECIPE, require_fit
from igpt.interop.files import local_folder, read_metadata
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.parallel.processes import dp_rank, is_dp_leader, on_first, rank, require_same, together
from igpt.parallel.storage import AsyncSave, load_tensors, saved_tensors
from igpt.recipes import parse_recipe, recipe_text, recipe_yaml

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

HEADER = "state.json"  # of a checkpoint: its progress, and the bytes of each file
LOADER = "loader"  # what the files of a checkpoint begin with that hold a group's loader
WRITTEN = ("checkpoints", "config.json", "metrics.jsonl", "model.safetensors", "palette.npy")
OWN = ("*.json", "*.jsonl", "*.safetensors", "*.yaml", "palette.npy", ".wandb-id")  # a run's
KEPT_CHECKPOINTS = 2  # the newest, and one to fall back to
PARAMETER_SEPARATOR = "/"  # between an optimizer's slot and a parameter's name


@dataclass(frozen=True)
class Progress:
    """How far a run is; what is random in it is a function of the step."""

    step: int  # optimizer steps done
    best: float | None = None  # smallest criterion of validation so far
    best_step: int = 0  # when it was reached
    validated: int = 0  # the step of the last validation


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs, beside its recipe, to go on: its progress, weights and moments."""

    folder: Path
    progress: Progress

    def load(self, model: ImageGPT, optimizer: torch.optim.Optimizer) -> None:
        """Fill a model and its optimizer; UserError when it is another model's."""
        weights = model.state_dict()
        with together():
            saved = saved_tensors(self.folder)
            require_fit(weights, saved, self.folder)
        load_tensors(self.folder, weights | _new_moments(model, optimizer, saved))

    def loader_states(self) -> list[dict[str, Any]]:
        """What each group's loader goes on from, in their order; none for one without a state."""
        return [read_json(path) for path in sorted(self.folder.glob(f"{LOADER}-*.json"))]


def recipe_of(model: Path) -> Recipe | None:
    """The recipe of a run, by its path or Hub id; None of a model folder without one.

    Raises UserError for a recipe that is broken, and for a Hub id that names nothing.
    """
    run = RunDirectory(local_folder(model))
    return run.recipe() if run.exists() else None


class RunDirectory:
    """The folder of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.metrics = path / "metrics.jsonl"

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / RECIPE).is_file()

    def require_free(self) -> None:
        """UserError where a new run would write over something that is no run."""
        for name in WRITTEN:
            if (self.path / name).exists():
                raise UserError(f"{self.path} holds {name} of something else: choose another --out")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the run while it is trained; UserError when another process on its machine does.

        What ends, however it ends, lets go. Where the disk or the system (Windows) knows no such
        locks nothing is held.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a") as lock:
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is training {self.path}") from None
            except OSError:
                pass
            yield

    def begin(self, recipe: Recipe, palette: Palette) -> None:
        """Write what repeats the run, beside nothing that a killed process left half-written."""
        for name in OWN:  # not what another command is writing here meanwhile
            remove_left(self.path, name)
        write_text(self.path / RECIPE, recipe_yaml(recipe))
        palette.save(self.path / "palette.npy")

    def recipe(self) -> Recipe:
        """The resolved recipe; UserError when there is no run here."""
        path = self.path / RECIPE
        if not path.is_file():
            raise UserError(f"no run at {self.path}: {path.name} is missing")
        return parse_recipe(recipe_text(str(path)), (), str(path))

    def palette(self) -> Palette | None:
        """The palette this run began with, if it came so far."""
        path = self.path / "palette.npy"
        return Palette.load(path) if path.is_file() else None

    def begin_checkpoint(
        self,
        progress: Progress,
        tensors: Mapping[str, Tensor],
        loader: Mapping[str, Any] | None = None,
    ) -> CheckpointWriter:
        """Begin to write a training state as it is now, and what this process's loader goes on
        from, if it has a state. Raises UserError when the disk takes nothing.
        """
        return CheckpointWriter(self.checkpoints, progress, tensors, loader)

    def note(self, progress: Progress) -> None:
        """Replace the progress in the checkpoint of its step, whose weights are the same.

        Raises UserError when the disk does not take it.
        """
        header = self.checkpoints / _folder_name(progress.step) / HEADER
        on_first(lambda: write_json(header, {**read_json(header), **asdict(progress)}))

    def latest_checkpoint(self, say: Say = lambda _: None) -> Checkpoint | None:
        """The newest whole checkpoint, or None when none was written yet.

        Says so when a newer one is damaged, or the pointer is lost. Raises UserError when all of
        them are damaged.
        """
        pointer = self.checkpoints / "latest"
        folders = sorted(self.checkpoints.glob("step-*"), reverse=True)
        if pointer.is_file():
            newest = pointer.read_text(encoding="utf-8").strip()
            folders = [folder for folder in folders if folder.name <= newest]
        elif folders:
            say(f"warning: no file {pointer}: taking the newest whole checkpoint")
        else:
            return None
        for folder in folders:
            try:
                return Checkpoint(folder, _read_progress(folder))
            except UserError as error:
                say(f"warning: {error}: going back to the checkpoint before it")
        raise UserError(f"{self.checkpoints}: no checkpoint is whole")


class CheckpointWriter:
    """A training state on its way to the disk, while the run goes on.

    Of several processes each holds one, and all call it alike.
    """

    def __init__(
        self,
        checkpoints: Path,
        progress: Progress,
        tensors: Mapping[str, Tensor],
        loader: Mapping[str, Any] | None,
    ) -> None:
        self._checkpoints, self._progress = checkpoints, progress
        self._final = checkpoints / _folder_name(progress.step)
        self._temporary = checkpoints / f".{self._final.name}.tmp"
        with self._failing():
            on_first(self._make_room)
            if loader is not None:
                with together():
                    if is_dp_leader():
                        write_json(self._temporary / f"{LOADER}-{dp_rank():05d}.json", loader)
        self._writing = AsyncSave(self._temporary, tensors)

    def is_written(self) -> bool:
        """Whether `publish` would not wait."""
        return self._writing.done()

    def publish(self) -> None:
        """Wait until all is written and make it the newest checkpoint, a whole one.

        Raises UserError when the disk does not take it.
        """
        with self._failing():
            self._writing.finish()
            names = sorted(path.name for path in self._temporary.iterdir())
            require_same("checkpoint files", names)
            on_first(self._rename)

    def _make_room(self) -> None:
        """An empty folder to write into, and none of those that a killed process left."""
        for left in self._checkpoints.glob(".step-*.tmp"):
            shutil.rmtree(left)
        self._temporary.mkdir(parents=True)

    def _rename(self) -> None:
        """Give what is on the disk its name, point to it, and drop old ones."""
        written, final = self._temporary, self._final
        files = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
        write_json(written / HEADER, {**asdict(self._progress), "files": files})
        # Left by a run that died before the pointer, or fell back to a checkpoint before these.
        for stale in self._checkpoints.glob("step-*"):
            if stale.name >= final.name:
                shutil.rmtree(stale)
        os.replace(written, final)
        flush(self._checkpoints)
        write_text(self._checkpoints / "latest", final.name + "\n")
        for old in sorted(self._checkpoints.glob("step-*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            if rank() == 0:
                shutil.rmtree(self._temporary, ignore_errors=True)
            raise UserError(
                f"cannot write checkpoint {self._final}: {error}; the last one is intact"
            ) from error


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _read_progress(folder: Path) -> Progress:
    """Of a checkpoint, if it is whole; else UserError that says what is wrong."""
    header = read_json(folder / HEADER)
    try:
        files: dict[str, int] = dict(header.pop("files"))
        progress = Progress(**header)
        if not all(isinstance(number, int) for number in (progress.step, *files.values())):
            raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / HEADER} is not the header of a checkpoint") from error
    for name, expected in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise UserError(f"{path} has {found} of {expected} bytes")
        if path.suffix == ".safetensors":
            read_metadata(path)  # raises for a header that is none
    return progress


def optimizer_tensors(model: ImageGPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by slot and parameter name: "exp_avg/blocks.0.attn.qkv.weight"."""
    return {
        f"{slot}{PARAMETER_SEPARATOR}{name}": tensor
        for name, parameter in model.named_parameters()
        for slot, tensor in optimizer.state[parameter].items()
    }


def _new_moments(
    model: ImageGPT, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A state of the optimizer to be filled with what was `saved` of one, by the same names."""
    parameters = dict(model.named_parameters())
    for key, like in saved.items():
        slot, separator, name = key.rpartition(PARAMETER_SEPARATOR)
        if separator and name in parameters:
            parameter = parameters[name]
            optimizer.state[parameter][slot] = (
                torch.zeros_like(parameter)  # split as it is
                if like.shape == parameter.shape
                else torch.zeros(like.shape, dtype=like.dtype, device=parameter.device)
            )
    return optimizer_tensors(model, optimizer)
