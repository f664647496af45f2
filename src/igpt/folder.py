"""The model folder, in the Hugging Face format: `igpt.load` and `transformers` read it.

config.json, preprocessor_config.json   shape and order; clusters and size
model.safetensors                       the weights; or an index, and the files that it names
lm_head.safetensors                     only of a model with classes: the head for the next pixel
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import save_file
from torch import Tensor

from igpt.config import ModelConfig, ParallelConfig, UserError
from igpt.disk import read_json, write_atomically, write_json
from igpt.interop import huggingface
from igpt.interop.files import read_tensors, read_weights
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.palette import Palette
from igpt.parallel.processes import on_first
from igpt.parallel.sharding import build, copy_whole, whole
from igpt.parallel.storage import all_finite

WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"  # beside the model, where the folder is a run's
INDEX = f"{WEIGHTS}.index.json"
GENERATIVE_HEAD = "lm_head.safetensors"
STEM = f"model-{'?' * 8}-{'?' * 5}"  # pattern of the files' names where weights fill several
FILE_BYTES = 10**9  # of a file at most, and so of what is gathered of a split model at a time


# --- writing -------------------------------------------------------------------------------------


def save_model(
    folder: Path, model: ImageGPT, codec: Codec, class_names: tuple[str, ...] = ()
) -> None:
    """Write the model folder.

    Weights come last, so that a folder with weights is complete. All processes call this and the
    first writes, holding one file's worth of a split model at a time. All raise UserError when it
    cannot write.
    """
    on_first(lambda: _write_description(folder, model.config, codec, class_names))
    writer = _WeightsWriter(folder)
    try:
        for part in _parts(model.state_dict()):
            theirs = huggingface.weights_to_hf(whole(part))
            on_first(partial(writer.add, theirs))
        on_first(writer.finish)
    except UserError:
        on_first(writer.discard)
        raise


def _write_description(
    folder: Path, config: ModelConfig, codec: Codec, class_names: tuple[str, ...]
) -> None:
    theirs = huggingface.config_to_hf(config, codec.order, class_names)
    write_json(folder / "config.json", theirs)
    processor = huggingface.processor_to_hf(codec.palette.clusters, codec.image_size)
    write_json(folder / "preprocessor_config.json", processor)


def _parts(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Native weights in parts that can be translated separately: each block, then all the rest."""
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        words = name.split(".")
        blocks.setdefault(words[1] if words[0] == "blocks" else "", {})[name] = tensor
    rest = blocks.pop("")
    yield from blocks.values()
    yield rest


class _WeightsWriter:
    """Writes weights to one file or, when they are more than FILE_BYTES, to several and an index.

    Several files get new names every time, so that the index in the folder always names either all
    of the old files or all of the new ones.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._stem = folder, f"model-{uuid4().hex[:8]}"
        self._held: dict[str, Tensor] = {}
        self._head: dict[str, Tensor] = {}
        self._files: dict[str, str] = {}  # a tensor's name -> the file that it is in
        self._bytes = 0

    def add(self, weights: dict[str, Tensor]) -> None:
        """Add weights by name: they are written now or in `finish`."""
        if huggingface.SCORE in weights:
            # transformers' classifier has no head for the next pixel, and would complain of one.
            self._head = {huggingface.LM_HEAD: weights.pop(huggingface.LM_HEAD)}
        if self._held and _bytes(self._held) + _bytes(weights) > FILE_BYTES:
            self._write_file()
        self._held |= weights

    def finish(self) -> None:
        """Make the added weights those of the folder, and remove the earlier ones."""
        if self._head:
            _save(self._folder / GENERATIVE_HEAD, self._head)
        if self._files:
            self._write_file()
            index = {"metadata": {"total_size": self._bytes}, "weight_map": self._files}
            write_json(self._folder / INDEX, index)
        else:
            _save(self._folder / WEIGHTS, self._held)
        kept = {INDEX, *self._files.values()} if self._files else {WEIGHTS}
        if self._head:
            kept.add(GENERATIVE_HEAD)
        ours = (WEIGHTS, INDEX, GENERATIVE_HEAD)  # and the names that _write_file gives
        for path in (*map(self._folder.joinpath, ours), *self._folder.glob(f"{STEM}.safetensors")):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the files written so far, of weights that cannot be completed."""
        for path in self._folder.glob(f"{self._stem}-*"):
            path.unlink()

    def _write_file(self) -> None:
        name = f"{self._stem}-{len(set(self._files.values())) + 1:05d}.safetensors"
        _save(self._folder / name, self._held)
        self._files |= dict.fromkeys(self._held, name)
        self._bytes += _bytes(self._held)
        self._held = {}


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    metadata = {"format": "pt"}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredModel:
    """A model that is still in its folder: weights are read from disk only when they are copied."""

    config: ModelConfig
    codec: Codec
    weights: Mapping[str, Tensor]  # by their native names
    source: Path  # the file that holds the weights, or the index that names their files

    def copy_into(self, model: ImageGPT, *, but: Collection[str] = ()) -> None:
        """Copy the weights, except those in `but`, into `model` or this process's part of it.

        Raises UserError when names or shapes do not fit.
        """
        own = {name: tensor for name, tensor in model.state_dict().items() if name not in but}
        require_fit(own, self.weights, self.source)
        for name, tensor in own.items():
            copy_whole(tensor, self.weights[name])


def require_fit(own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
    """UserError unless `found` has all of the model's `own` tensors, in the same shapes."""
    for name, tensor in own.items():
        if name not in found:
            raise UserError(f"{source}: tensor {name} is missing")
        if found[name].shape != tensor.shape:
            shape, expected = tuple(found[name].shape), tuple(tensor.shape)
            raise UserError(f"{source}: {name} has shape {shape}, the config asks for {expected}")


def require_model(folder: Path) -> None:
    """UserError for a folder that holds no model, and for a run that has not made one yet."""
    if not folder.is_dir():
        raise UserError(f"no run at {folder}: expected a folder that `igpt pretrain` made")
    if not (folder / "config.json").is_file():
        if (folder / RECIPE).is_file():
            expected = "the run's first validation makes its model"
        else:
            expected = "expected a run or an ImageGPT model folder"
        raise UserError(f"no file {folder / 'config.json'}: {expected}")


def open_model(folder: Path) -> StoredModel:
    """The model of a run or a local Hugging Face ImageGPT folder, its weights still on the disk.

    Raises UserError, one line, for anything that is missing, broken or of another kind.
    """
    require_model(folder)
    theirs = read_json(folder / "config.json")
    weights, weights_path = read_weights(folder)
    if (folder / GENERATIVE_HEAD).is_file():
        weights |= read_tensors(folder / GENERATIVE_HEAD)
    config, order = huggingface.config_from_hf(theirs, weights)
    try:
        state = huggingface.weights_from_hf(weights, config, theirs)
    except UserError as error:
        raise UserError(f"{weights_path}: {error}") from error
    processor = folder / "preprocessor_config.json"
    palette = Palette(huggingface.clusters_from_hf(read_json(processor)))
    codec = model_codec(config, palette, order, processor)
    return StoredModel(config, codec, state, weights_path)


def fill_model(stored: StoredModel, parallel: ParallelConfig, device: torch.device) -> ImageGPT:
    """The stored model on `device`, split over processes as `parallel` says: each reads its part.

    Raises UserError for weights that do not fit or are not finite, and for another number of
    processes.
    """
    model = build(stored.config, parallel, device)
    stored.copy_into(model)
    if not all_finite(model.state_dict()):
        raise UserError(f"{stored.source}: not all weights are finite numbers")
    return model.eval()


def load_class_names(folder: Path, n_classes: int) -> tuple[str, ...]:
    """Names of the classes that the model in `folder` has a head for."""
    return huggingface.class_names_from_hf(read_json(folder / "config.json"), n_classes)


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
