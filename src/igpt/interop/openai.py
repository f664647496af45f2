"""Translates OpenAI's variables (image-gpt, src/model.py), by TensorFlow name, to native weights.

A variable is an array as TensorFlow stores it: q/k/v projections `[heads, width/heads, d]` read as
[out, in], the attention output `[heads, width/heads, d]` and the MLP matrices read as [in, out].

A checkpoint that was saved in training also has the optimizer's state: the count of steps, the
powers of Adam's betas, and two slots for every variable, like `model/wte/Adam`. Variables whose
last word is in `TRAINING` are left aside; any other that the model does not have is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from igpt.config import ModelConfig, UserError
from igpt.interop.tensorflow_reader import TensorFlowCheckpoint
from igpt.model import ImageGPT

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]

# TensorFlow's Adam, and OpenAI's, which calls its moments m and v.
TRAINING = frozenset(
    {"global_step", "beta1_power", "beta2_power", "Adam", "Adam_1", "adam_m", "adam_v"}
)


def read_openai(prefix: Path) -> ImageGPT:
    """The model of a TensorFlow checkpoint; `prefix` is what its files' names begin with.

    Raises UserError, one line, when TensorFlow is not installed, when the checkpoint is missing or
    broken, and when it is one of another architecture.
    """
    checkpoint = TensorFlowCheckpoint(prefix)
    try:
        config = config_from_openai(checkpoint.shapes)
    except UserError as error:
        raise UserError(f"{prefix}: {error}") from error
    with torch.device("meta"):  # the tensors that are read become the weights, without a copy
        model = ImageGPT(config)
    model.load_state_dict(weights_from_openai(checkpoint.read, config), assign=True)
    return model.eval()


def config_from_openai(shapes: Mapping[str, Shape]) -> ModelConfig:
    """Sizes read off the shapes of all variables; without a start token it is a BERT model.

    A classifier that is all zeros was never trained but is kept. Raises UserError that names a
    variable which is missing, of the wrong shape or left over.
    """
    found = {name: shape for name, shape in shapes.items() if _last_word(name) not in TRAINING}

    def sizes(name: str, n_axes: int) -> Shape:
        if name not in found:
            raise UserError(f"not an image-gpt checkpoint: variable {name} is missing")
        if len(found[name]) != n_axes:
            raise UserError(f"variable {name} has shape {list(found[name])}, not {n_axes} axes")
        return found[name]

    vocab_size, n_embd = sizes("model/wte", 2)
    config = ModelConfig(
        n_layer=len({match[0] for name in found if (match := re.match(r"model/h\d+/", name))}),
        n_head=sizes("model/h0/attn/q_proj", 3)[0],
        n_embd=n_embd,
        vocab_size=vocab_size,
        n_positions=sizes("model/wpe", 2)[0],
        n_classes=sizes("model/clf/wclf", 2)[0] if "model/clf/wclf" in found else 0,
        causal="model/sos" in found,
    )
    expected = variable_shapes(config)
    for name, shape in expected.items():
        if sizes(name, len(shape)) != shape:
            raise UserError(
                f"variable {name} has shape {list(found[name])}, the others ask for {list(shape)}"
            )
    if left := found.keys() - expected.keys():
        raise UserError(f"not an image-gpt checkpoint: unknown variable {min(left)}")
    return config


def variable_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The variables of OpenAI's model of these sizes, by name."""
    d, pixels = config.n_embd, (config.vocab_size, config.n_embd)
    heads = (config.n_head, d // config.n_head, d)
    shapes: dict[str, Shape] = {"wte": pixels, "wtet": pixels, "wpe": (config.n_positions, d)}
    if config.causal:
        shapes["sos"] = (d,)
    for i in range(config.n_layer):
        shapes |= {f"h{i}/{norm}/g": (d,) for norm in ("ln_1", "ln_2")}
        shapes |= {f"h{i}/attn/{name}_proj": heads for name in "qkvc"}
        shapes |= {f"h{i}/mlp/c_fc/w": (d, 4 * d), f"h{i}/mlp/c_proj/w": (4 * d, d)}
    shapes["ln_f/g"] = (d,)
    if config.n_classes:
        shapes["clf/wclf"] = (config.n_classes, d)
    return {f"model/{name}": shape for name, shape in shapes.items()}


def weights_from_openai(read: Callable[[str], Array], config: ModelConfig) -> dict[str, Tensor]:
    """The native state of `ImageGPT(config)`, from the variables that `read` gives by name.

    The variables' shapes must be those of `variable_shapes`.
    """

    def take(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(read(f"model/{name}"), dtype=np.float32))

    def rows(name: str) -> Tensor:
        return take(name).reshape(config.n_embd, config.n_embd)  # [heads * width/heads, d]

    state = {"wte": take("wte"), "wpe": take("wpe"), "head.weight": take("wtet")}
    state["ln_f.weight"] = take("ln_f/g")
    if config.causal:
        state["start"] = take("sos")
    if config.n_classes:
        state["clf.weight"] = take("clf/wclf")
    for i in range(config.n_layer):
        for norm in ("ln_1", "ln_2"):
            state[f"blocks.{i}.{norm}.weight"] = take(f"h{i}/{norm}/g")
        qkv = [rows(f"h{i}/attn/{name}_proj") for name in "qkv"]
        state[f"blocks.{i}.attn.qkv.weight"] = torch.cat(qkv)  # [3d, d]
        state[f"blocks.{i}.attn.proj.weight"] = rows(f"h{i}/attn/c_proj").T
        state[f"blocks.{i}.mlp.fc.weight"] = take(f"h{i}/mlp/c_fc/w").T
        state[f"blocks.{i}.mlp.proj.weight"] = take(f"h{i}/mlp/c_proj/w").T
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _last_word(name: str) -> str:
    return name.rsplit("/", 1)[-1]
