"""The run directory, and its only writer.

    run/
      config.json, model.safetensors, preprocessor_config.json   the best model
      recipe.yaml, palette.npy                         resolved recipe; the two repeat the run
      metrics.jsonl, tensorboard/, figures/
      checkpoints/step-00001000/, checkpoints/latest   training state, and a pointer to it

A checkpoint is written into a folder of another name, flushed to the disk and renamed; then the
pointer is replaced. A reader sees a whole checkpoint or the one before. Nothing is pickled.

Of several processes, all call what writes: the first one writes what is one file, and every one its
part of a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from igpt.config import ModelConfig, Recipe, UserError, parse_recipe, recipe_yaml
from igpt.interop import huggingface
from igpt.interop.files import read_tensors, read_weights
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.palette import Palette
from igpt.parallel.processes import on_first, rank, require_same, together
from igpt.parallel.sharding import whole_weights
from igpt.parallel.storage import load_tensors, save_tensors, saved_tensors

GENERATIVE_HEAD = "lm_head.safetensors"  # of a model with classes, beside `model.safetensors`
HEADER = "state.json"  # of a checkpoint: its progress, and the bytes of each file
LOADER = "loader"  # what the files of a checkpoint begin with that hold a process's loader
KEPT_CHECKPOINTS = 2  # the newest, and one to fall back to
PARAMETER_SEPARATOR = "/"  # between an optimizer's slot and a parameter's name


@dataclass(frozen=True)
class Progress:
    """How far a run is; what is random in it is a function of the step."""

    step: int  # optimizer steps done
    best: float | None = None  # smallest criterion of validation so far
    best_step: int = 0  # when it was reached


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs, beside its recipe, to go on: its progress, weights and moments."""

    folder: Path
    progress: Progress

    def load(self, model: ImageGPT, optimizer: torch.optim.Optimizer) -> None:
        """Fill a model and its optimizer; UserError when it is another model's."""
        saved = saved_tensors(self.folder)
        weights = model.state_dict()
        _require_fit(weights, saved, self.folder)
        load_tensors(self.folder, weights | _new_moments(model, optimizer, saved))

    def loader_states(self) -> list[dict[str, Any]]:
        """What the loader of each process goes on from, by rank; none for one without a state."""
        return [read_json(path) for path in sorted(self.folder.glob(f"{LOADER}-*.json"))]


# --- writing -------------------------------------------------------------------------------------


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file of another name, flush it, rename it to `path`.

    Raises UserError when the disk does not take it; `path` is then what it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):  # it was renamed, or never made
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """`write_atomically` of a text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_model(
    folder: Path, model: ImageGPT, codec: Codec, class_names: tuple[str, ...] = ()
) -> None:
    """Write the Hugging Face model folder; `igpt.load` and `transformers` read it.

    Weights come last, so that a folder with weights is whole. Of several processes, all call it and
    the first writes; UserError for all when it cannot.
    """
    state = whole_weights(model)
    on_first(lambda: _write_model(folder, state, model.config, codec, class_names))


def _write_model(
    folder: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    codec: Codec,
    class_names: tuple[str, ...],
) -> None:
    theirs = huggingface.config_to_hf(config, codec.order, class_names)
    write_json(folder / "config.json", theirs)
    processor = huggingface.processor_to_hf(codec.palette.clusters, codec.image_size)
    write_json(folder / "preprocessor_config.json", processor)
    weights = huggingface.weights_to_hf(state, config)
    if config.n_classes:
        # Their classifier has no head for the next pixel, and would complain of one.
        head = {huggingface.LM_HEAD: weights.pop(huggingface.LM_HEAD)}
        write_atomically(folder / GENERATIVE_HEAD, lambda temporary: save_file(head, temporary))
    write_atomically(
        folder / "model.safetensors",
        lambda temporary: save_file(weights, temporary, metadata={"format": "pt"}),
    )


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """`write_atomically` of a JSON object."""
    write_text(path, json.dumps(contents, indent=2) + "\n")


# --- reading -------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError when the file is missing or something else."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no file {path}: expected a run or an ImageGPT model folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a JSON file") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return contents


def load_into(model: ImageGPT, state: Mapping[str, Tensor], source: Path) -> None:
    """Copy native weights into the model; UserError when names or shapes do not fit."""
    _require_fit(model.state_dict(), state, source)
    model.load_state_dict(dict(state))


def _require_fit(own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
    """UserError unless `found` has a tensor of the shape of each of the model's `own`."""
    for name, tensor in own.items():
        if name not in found:
            raise UserError(f"{source}: tensor {name} is missing")
        if found[name].shape != tensor.shape:
            shape, expected = tuple(found[name].shape), tuple(tensor.shape)
            raise UserError(f"{source}: {name} has shape {shape}, the config asks for {expected}")


def load_model(folder: Path) -> tuple[ImageGPT, Codec]:
    """The model and codec of a run or a local Hugging Face ImageGPT folder.

    Raises UserError, one line, for anything that is missing, broken or of another kind.
    """
    if not folder.is_dir():
        raise UserError(f"no run at {folder}: expected a folder that `igpt pretrain` made")
    theirs = read_json(folder / "config.json")
    weights, weights_path = read_weights(folder)
    if (folder / GENERATIVE_HEAD).is_file():
        weights |= read_tensors(folder / GENERATIVE_HEAD)
    config, order = huggingface.config_from_hf(theirs, weights)
    try:
        state = huggingface.weights_from_hf(weights, config, theirs)
    except UserError as error:
        raise UserError(f"{weights_path}: {error}") from error
    model = ImageGPT(config)
    load_into(model, state, weights_path)
    return model.eval(), _codec(folder, config, order)


def load_class_names(folder: Path, n_classes: int) -> tuple[str, ...]:
    """Names of the classes that the model in `folder` has a head for."""
    return huggingface.class_names_from_hf(read_json(folder / "config.json"), n_classes)


def _codec(folder: Path, config: ModelConfig, order: str) -> Codec:
    path = folder / "preprocessor_config.json"
    palette = Palette(huggingface.clusters_from_hf(read_json(path)))
    return model_codec(config, palette, order, path)


def model_codec(config: ModelConfig, palette: Palette, order: str, source: Path) -> Codec:
    """The codec of a model, with the palette that `source` holds.

    Raises UserError when the model has another number of colours, or is not of square pictures.
    """
    if palette.n_colors != config.vocab_size:
        raise UserError(
            f"{source}: {palette.n_colors} clusters, but the model has {config.vocab_size} tokens"
        )
    size = round(config.n_positions**0.5)
    if size * size != config.n_positions:
        raise UserError(f"the model's {config.n_positions} positions are not a square picture")
    return Codec(palette, order, size)


# --- a training run ------------------------------------------------------------------------------


class RunDirectory:
    """The folder of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.metrics = path / "metrics.jsonl"

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "recipe.yaml").is_file()

    def begin(self, recipe: Recipe, palette: Palette) -> None:
        """Write what repeats the run."""
        self.save_recipe(recipe)
        palette.save(self.path / "palette.npy")

    def save_recipe(self, recipe: Recipe) -> None:
        write_text(self.path / "recipe.yaml", recipe_yaml(recipe))

    def recipe(self) -> Recipe:
        """The resolved recipe; UserError when there is no run here."""
        path = self.path / "recipe.yaml"
        if not path.is_file():
            raise UserError(f"no run at {self.path}: {path.name} is missing")
        return parse_recipe(path.read_text(encoding="utf-8"), (), str(path))

    def palette(self) -> Palette | None:
        """The palette this run began with, if it came so far."""
        path = self.path / "palette.npy"
        return Palette.load(path) if path.is_file() else None

    def save_checkpoint(
        self,
        progress: Progress,
        tensors: Mapping[str, Tensor],
        loader: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a training state, and what this process's loader goes on from, if it has a state.

        Raises UserError when the disk does not take it.
        """
        final = self.checkpoints / f"step-{progress.step:08d}"
        temporary = self.checkpoints / f".{final.name}.tmp"
        try:
            on_first(lambda: _make_empty(temporary))
            if loader is not None:
                with together():
                    write_json(temporary / f"{LOADER}-{rank():05d}.json", loader)
            save_tensors(temporary, tensors)
            require_same("checkpoint files", sorted(path.name for path in temporary.iterdir()))
            on_first(lambda: self._publish(temporary, final, progress))
        except UserError as error:
            if rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"cannot write checkpoint {final}: {error}; the last one is intact"
            ) from error

    def _publish(self, written: Path, final: Path, progress: Progress) -> None:
        """Give a checkpoint that is on the disk its name, point to it, and drop old ones."""
        files = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
        header = json.dumps({**asdict(progress), "files": files})
        (written / HEADER).write_text(header, encoding="utf-8")
        _flush(written / HEADER)
        _flush(written)
        # Left by a run that died before the pointer, or fell back to a checkpoint before these.
        for stale in self.checkpoints.glob("step-*"):
            if stale.name >= final.name:
                shutil.rmtree(stale)
        os.replace(written, final)
        _flush(self.checkpoints)
        write_text(self.checkpoints / "latest", final.name + "\n")
        for old in sorted(self.checkpoints.glob("step-*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def latest_checkpoint(self, say: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
        """The newest whole checkpoint, or None when none was written yet.

        Says so when a newer one is damaged. Raises UserError when all of them are.
        """
        pointer = self.checkpoints / "latest"
        if not pointer.is_file():
            return None
        newest = pointer.read_text(encoding="utf-8").strip()
        folders = sorted(self.checkpoints.glob("step-*"), reverse=True)
        for folder in [f for f in folders if f.name <= newest]:
            try:
                return Checkpoint(folder, _read_progress(folder))
            except UserError as error:
                say(f"warning: {error}: going back to the checkpoint before it")
        raise UserError(f"{self.checkpoints}: no checkpoint is whole")


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _read_progress(folder: Path) -> Progress:
    """Of a checkpoint, if it is whole; else UserError that says what is wrong."""
    header = read_json(folder / HEADER)
    files: dict[str, int] = header.pop("files", {})  # version 0.1.0 did not write it
    try:
        progress = Progress(**header)
    except TypeError as error:
        raise UserError(f"{folder / HEADER} is not the header of a checkpoint") from error
    for name, expected in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise UserError(f"{path} has {found} of {expected} bytes")
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
