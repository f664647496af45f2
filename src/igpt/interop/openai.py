"""OpenAI's variables (image-gpt, src/model.py) by their TensorFlow names, to native weights.

A variable is an array as TensorFlow stores it: q/k/v projections `[heads, width/heads, d]` read as
[out, in], the attention output `[heads, width/heads, d]` and the MLP matrices read as [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from igpt.config import ModelConfig, UserError

Array = npt.NDArray[np.float32]


def config_from_openai(variables: Mapping[str, Array]) -> ModelConfig:
    """Sizes read off the tensors; a model without a start token is a BERT one.

    A classifier that is all zeros, as in the published pretrained checkpoints, was never trained
    but is kept. Raises UserError when a defining variable is missing.
    """
    needed = ("model/wte", "model/wpe", "model/h0/attn/q_proj")
    missing = [name for name in needed if name not in variables]
    if missing:
        raise UserError(f"not an image-gpt checkpoint: variable {missing[0]} is missing")
    layers = {name.split("/")[1] for name in variables if name.startswith("model/h")}
    classifier = variables.get("model/clf/wclf")
    return ModelConfig(
        n_layer=len(layers),
        n_head=variables["model/h0/attn/q_proj"].shape[0],
        n_embd=variables["model/wte"].shape[1],
        vocab_size=variables["model/wte"].shape[0],
        n_positions=variables["model/wpe"].shape[0],
        n_classes=0 if classifier is None else classifier.shape[0],
        causal="model/sos" in variables,
    )


def weights_from_openai(variables: Mapping[str, Array]) -> dict[str, Tensor]:
    """The native state of `ImageGPT(config_from_openai(variables))`.

    Raises UserError that names a variable that is missing or left over.
    """
    config = config_from_openai(variables)
    left = dict(variables)

    def take(name: str) -> Tensor:
        if name not in left:
            raise UserError(f"not a whole image-gpt checkpoint: variable model/{name} is missing")
        return torch.from_numpy(np.ascontiguousarray(left.pop(name), dtype=np.float32))

    def rows(name: str) -> Tensor:
        return take(name).reshape(config.n_embd, config.n_embd)  # [heads * width/heads, d]

    state = {"wte": take("model/wte"), "wpe": take("model/wpe"), "head.weight": take("model/wtet")}
    state["ln_f.weight"] = take("model/ln_f/g")
    if config.causal:
        state["start"] = take("model/sos")
    if config.n_classes:
        state["clf.weight"] = take("model/clf/wclf")
    for i in range(config.n_layer):
        theirs, ours = f"model/h{i}", f"blocks.{i}"
        for norm in ("ln_1", "ln_2"):
            state[f"{ours}.{norm}.weight"] = take(f"{theirs}/{norm}/g")
        qkv = [rows(f"{theirs}/attn/{name}_proj") for name in "qkv"]
        state[f"{ours}.attn.qkv.weight"] = torch.cat(qkv)  # [3d, d]
        state[f"{ours}.attn.proj.weight"] = rows(f"{theirs}/attn/c_proj").T
        state[f"{ours}.mlp.fc.weight"] = take(f"{theirs}/mlp/c_fc/w").T
        state[f"{ours}.mlp.proj.weight"] = take(f"{theirs}/mlp/c_proj/w").T
    if left:
        raise UserError(f"not an image-gpt checkpoint: unknown variable {min(left)}")
    return {name: tensor.contiguous() for name, tensor in state.items()}
