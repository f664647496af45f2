"""The Hugging Face ImageGPT model folder: `config.json`, `model.safetensors`, clusters.

Their layout differs from ours in three ways: linear weights are stored [in, out] (their Conv1D),
the start token is the last row of their embedding, and their linear layers always have biases,
written as zeros for a model that has none. What their configuration has no field for, the order of
the pixels, whether the model is causal and how it was masked, stands under the key "igpt" of
`config.json`.

Scales of their attention that ours does not have are put into the weights of the queries, which
gives the same model.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from igpt.config import ModelConfig, UserError, first_line
from igpt.model import NORM_EPS

# Fields of their configuration that ours can represent with one value only.
FIXED: dict[str, Any] = {
    "model_type": "imagegpt",
    "layer_norm_epsilon": NORM_EPS,
    "add_cross_attention": False,
}
CLASSIFIER = "ImageGPTForImageClassification"  # reads unshifted tokens, unlike ours
LM_HEAD, SCORE = "lm_head.weight", "score.weight"
# native tensor outside of blocks -> theirs, but for the embeddings
ROOT = {
    "wpe": "transformer.wpe.weight",
    "ln_f.weight": "transformer.ln_f.weight",
    "head.weight": LM_HEAD,
    "clf.weight": SCORE,
}
# native linear layer of a block -> theirs
LINEAR = {
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
# native tensor of a block -> theirs
BLOCK = {"ln_1.weight": "ln_1.weight", "ln_2.weight": "ln_2.weight"} | {
    f"{native}.{kind}": f"{foreign}.{kind}"
    for native, foreign in LINEAR.items()
    for kind in ("weight", "bias")
}


def config_to_hf(
    config: ModelConfig, order: str, class_names: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Our configuration as the contents of their `config.json`."""
    classes = {str(i): name for i, name in enumerate(class_names)}
    labels = {name: i for i, name in enumerate(class_names)}
    return {
        **FIXED,
        "architectures": [CLASSIFIER if config.n_classes else "ImageGPTForCausalImageModeling"],
        "activation_function": config.activation,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size + 1,  # theirs counts the start token
        "n_positions": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        **({"id2label": classes, "label2id": labels} if class_names else {}),
        "igpt": {
            "order": order,
            "causal": config.causal,
            "mask_probability": config.mask_probability,
            "shift": config.shift,
        },
    }


def class_names_from_hf(theirs: Mapping[str, Any], n_classes: int) -> tuple[str, ...]:
    """Names of the classes from `config.json`; their numbers where it has none.

    Those of a name that several have, as ImageNet's two cranes, get their number behind it.
    """
    told = theirs.get("id2label")
    found = told if isinstance(told, Mapping) else {}
    names = [str(found.get(str(i), i)) for i in range(n_classes)]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return tuple(f"{name} ({i})" if name in shared else name for i, name in enumerate(names))


def config_from_hf(
    theirs: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[ModelConfig, str]:
    """Configuration and order from `config.json` and the weights beside it.

    Raises UserError that names a field which is missing or cannot be represented.
    """
    for name, expected in FIXED.items():
        value = theirs.get(name, expected)
        if value != expected:
            raise UserError(f"config.json: {name} is {value!r}, only {expected!r} is supported")
    n_classes = len(weights[SCORE]) if SCORE in weights else 0
    try:
        ours = dict(theirs.get("igpt") or {})
        classifier = CLASSIFIER in (theirs.get("architectures") or ())
        config = ModelConfig(
            n_layer=int(theirs["n_layer"]),
            n_head=int(theirs["n_head"]),
            n_embd=int(theirs["n_embd"]),
            vocab_size=int(theirs["vocab_size"]) - 1,
            n_positions=int(theirs["n_positions"]),
            n_classes=n_classes,
            causal=bool(ours.get("causal", True)),
            mask_probability=float(ours.get("mask_probability", ModelConfig.mask_probability)),
            bias=_has_bias(weights),
            activation=str(theirs.get("activation_function", "quick_gelu")),
            shift=bool(ours.get("shift", not classifier)),
        )
    except KeyError as error:
        raise UserError(f"config.json: field {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"config.json: {first_line(error)}") from error
    if theirs.get("n_inner") not in (None, 4 * config.n_embd):
        raise UserError(
            f"config.json: n_inner is {theirs['n_inner']}, only 4 * n_embd is supported"
        )
    return config, str(ours.get("order", "raster"))


def weights_to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Native weights under their names: of a whole model, of blocks, or of all that is no block.

    Raises UserError for a weight that `transformers` has none for.
    """
    theirs = {}
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    names = _names(sorted(blocks))
    if unknown := state.keys() - names.keys() - {"wte", "start"}:
        raise UserError(
            f"{min(unknown)} has no place in a model folder, whose layout is that of transformers"
        )
    for native, foreign in names.items():
        if native in state:
            theirs[foreign] = _turned(native, state[native])
        elif native.endswith(".bias"):
            weight = state[f"{native.removesuffix('.bias')}.weight"]
            theirs[foreign] = weight.new_zeros(len(weight))
    if "wte" in state:
        start = state.get("start", torch.zeros_like(state["wte"][0]))  # BERT has none
        theirs["transformer.wte.weight"] = torch.cat((state["wte"], start[None]))  # [K + 1, d]
    return {name: tensor.detach().contiguous().cpu() for name, tensor in theirs.items()}


def _names(blocks: Iterable[int]) -> dict[str, str]:
    """Native tensor -> theirs, but for the embeddings: those outside of blocks and of `blocks`."""
    return ROOT | {
        f"blocks.{i}.{native}": f"transformer.h.{i}.{foreign}"
        for i in blocks
        for native, foreign in BLOCK.items()
    }


def _turned(native: str, tensor: Tensor) -> Tensor:
    """A block's linear weight is [out, in] here and [in, out] there; all else is the same."""
    return tensor.T if native.startswith("blocks.") and tensor.ndim == 2 else tensor


def _has_bias(theirs: Mapping[str, Tensor]) -> bool:
    """Whether a linear layer's bias is other than zero."""
    linear = tuple(f"{foreign}.bias" for foreign in LINEAR.values())
    return any(name.endswith(linear) and bool(b.any()) for name, b in theirs.items())


def weights_from_hf(
    weights: Mapping[str, Tensor], config: ModelConfig, theirs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Native weights from theirs and their `config.json`; a model of any of their three heads.

    Where they can be, they are views: of a file that is mapped to memory nothing is read here.

    Without a head for the next pixel, or with one that is tied to the embeddings, ours is zero, or
    the embeddings of the colours. Raises UserError that names a tensor which is missing or left
    over.
    """
    # Buffers that older versions of transformers saved with the weights.
    buffers = (".attn.bias", ".attn.masked_bias")
    base = not any(name.startswith("transformer.") for name in weights)
    left = {
        name if name in (LM_HEAD, SCORE) or not base else f"transformer.{name}": tensor
        for name, tensor in weights.items()
        if not name.endswith(buffers)
    }

    def take(name: str) -> Tensor:
        if name not in left:
            raise UserError(f"the weights lack tensor {name}")
        return left.pop(name)

    wte = take("transformer.wte.weight")
    if theirs.get("tie_word_embeddings", False):
        left[LM_HEAD] = wte
    if LM_HEAD not in left:
        warnings.warn("the model has no head for the next pixel, only features", stacklevel=2)
        left[LM_HEAD] = torch.zeros_like(wte)
    state = {"wte": wte[:-1]}
    if config.causal:
        state["start"] = wte[-1]
    for native, foreign in _names(range(config.n_layer)).items():
        if foreign == SCORE and not config.n_classes:
            continue
        tensor = _turned(native, take(foreign))
        if config.bias or not native.endswith(".bias"):
            state[native] = tensor
    if left:
        raise UserError(f"the weights have an unknown tensor {min(left)}")
    state["head.weight"] = state["head.weight"][: config.vocab_size]
    for i in range(config.n_layer):
        _scale_queries(state, f"blocks.{i}.attn.qkv", config, _attention_scale(theirs, config, i))
    return state


def _attention_scale(theirs: Mapping[str, Any], config: ModelConfig, layer: int) -> float:
    """What their attention logits are multiplied by, over 1/sqrt(width of a head)."""
    scale = 1.0
    if not theirs.get("scale_attn_weights", True):
        scale *= (config.n_embd / config.n_head) ** 0.5
    if theirs.get("scale_attn_by_inverse_layer_idx", False):
        scale /= layer + 1
    return scale


def _scale_queries(state: dict[str, Tensor], name: str, config: ModelConfig, scale: float) -> None:
    if scale != 1:
        factors = torch.ones(3 * config.n_embd)
        factors[: config.n_embd] = scale
        state[f"{name}.weight"] = state[f"{name}.weight"] * factors[:, None]
        if config.bias:
            state[f"{name}.bias"] = state[f"{name}.bias"] * factors


def processor_to_hf(clusters: npt.NDArray[np.float32], image_size: int) -> dict[str, Any]:
    """The contents of `preprocessor_config.json` for clusters [K, 3] in [-1, 1]."""
    return {
        "image_processor_type": "ImageGPTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 2,  # bilinear
        "do_normalize": True,
        "do_color_quantize": True,
        "clusters": clusters.tolist(),
    }


def clusters_from_hf(theirs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Clusters [K, 3] of `preprocessor_config.json`; UserError when there are none."""
    if theirs.get("clusters") is None:
        raise UserError("preprocessor_config.json has no clusters")
    try:
        return np.asarray(theirs["clusters"], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"preprocessor_config.json: clusters: {first_line(error)}") from error
