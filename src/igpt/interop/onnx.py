"""Models as ONNX graphs, for where there is no PyTorch: scoring, classifying, one step of decoding.

The batch size and, in decoding, the number of positions so far are dynamic. Every exported graph is
run by ONNX Runtime and compared with the model.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.config import UserError
from igpt.model import ImageGPT

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # largest difference of an output from the model's


@dataclass(frozen=True)
class Graph:
    """A module with its inputs by name, and which of their dimensions are free (dynamic)."""

    module: nn.Module
    inputs: dict[str, Tensor]
    free: dict[str, dict[int, str]]
    outputs: tuple[str, ...]


class Score(nn.Module):
    """-ln p of every token [B, T]; for BERT, of those that `masked` hides, given the others."""

    def __init__(self, model: ImageGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        # Spelt out, since the exporter turns `cross_entropy` without reduction into a mean.
        log_p = self.model(tokens, masked).log_softmax(dim=-1)  # [B, T, K]
        return -log_p.gather(-1, tokens[..., None]).squeeze(-1)


class Classify(nn.Module):
    """Class logits [B, C] of pictures `tokens` [B, T]."""

    def __init__(self, model: ImageGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        return self.model.classify(self.model.trunk(tokens, masked))


class _Growing:
    """A `Cache` that a step replaces by a longer copy, instead of writing into it."""

    bias = None  # attention sees all that the cache holds

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = list(keys.unbind()), list(values.unbind())

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer] = torch.cat((self.keys[layer], key), dim=2)
        self.values[layer] = torch.cat((self.values[layer], value), dim=2)
        return self.keys[layer], self.values[layer]


class DecodeStep(nn.Module):
    """The next pixel's logits [B, K] after `token` [B], and the cache [L, B, H, S + 1, D].

    A picture's first `token` is K, the start token, with a cache of S = 0 positions.
    """

    def __init__(self, model: ImageGPT) -> None:
        super().__init__()
        self.model = model
        self.embeddings = nn.Parameter(torch.cat((model.wte, model.start[None])))

    def forward(self, token: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cache, position = _Growing(keys, values), keys.shape[3]
        here = torch.arange(position, position + 1)
        h = F.embedding(token, self.embeddings)[:, None] + self.model.wpe[here]  # [B, 1, d]
        for block in self.model.blocks:
            h = block(h, cache)
        logits = self.model.head(self.model.ln_f(h[:, 0]))
        return logits, torch.stack(cache.keys), torch.stack(cache.values)


def graphs(model: ImageGPT) -> dict[str, Graph]:
    """The graphs that a model has, by the names of their files."""
    c = model.config
    tokens = torch.randint(c.vocab_size, (3, c.n_positions), generator=torch.Generator())
    pictures: dict[str, Tensor] = {"tokens": tokens}
    free = {"tokens": {0: "batch"}}
    if not c.causal:
        pictures["masked"] = torch.arange(c.n_positions).expand(3, -1) % 7 == 0
        free["masked"] = {0: "batch"}
    found = {}
    if c.predicts_pixels:  # an unshifted causal model was trained only to classify
        found["score"] = Graph(Score(model), pictures, free, ("nats",))
    if c.n_classes:
        found["classify"] = Graph(Classify(model), pictures, free, ("logits",))
    if c.can_sample and c.n_positions > 1:  # a single pixel follows none
        held = min(5, c.n_positions - 1)
        shape = (2, c.n_layer, 3, c.n_head, held, c.n_embd // c.n_head)
        cache = torch.randn(shape, generator=torch.Generator())
        inputs = {"token": tokens[:, 0], "keys": cache[0], "values": cache[1]}
        grows = {1: "batch", 3: "positions"}
        free = {"token": {0: "batch"}, "keys": grows, "values": grows}
        outputs = ("logits", "new_keys", "new_values")
        found["decode"] = Graph(DecodeStep(model), inputs, free, outputs)
    return found


def export_onnx(model: ImageGPT, folder: Path) -> dict[str, float]:
    """Write `<name>.onnx` for each graph; returns each one's largest difference from the model.

    Raises UserError where ONNX is not installed, and when a graph differs by more than TOLERANCE.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install {' '.join(missing)}")
    if model.wte.device.type != "cpu":  # where the runtime computes, and the example inputs lie
        model = copy.deepcopy(model).cpu()
    differences = {}
    for name, graph in graphs(model.eval()).items():
        path = folder / f"{name}.onnx"
        _export(graph, path)
        differences[name] = _difference(graph, path)
        if not differences[name] <= TOLERANCE:
            raise UserError(f"{name}.onnx differs from the model by {differences[name]:.1e}")
    return differences


def _export(graph: Graph, path: Path) -> None:
    shapes = {
        name: dict.fromkeys(dimensions, torch.export.Dim.DYNAMIC)
        for name, dimensions in graph.free.items()
    }
    with _silence():
        torch.onnx.export(
            graph.module,
            kwargs=dict(graph.inputs),
            f=path,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
        )


def _difference(graph: Graph, path: Path) -> float:
    """The largest difference of the runtime's outputs from the model's.

    For the sizes that the graph was traced with, and for others.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for inputs in (graph.inputs, _smaller(graph)):
        with torch.inference_mode():
            expected = graph.module(**inputs)
        if isinstance(expected, Tensor):
            expected = (expected,)
        arrays: Mapping[str, Any] = {name: x.numpy() for name, x in inputs.items()}
        for mine, theirs in zip(expected, session.run(None, arrays), strict=True):
            # Which stays NaN once it is: `max` would forget it.
            largest = float(np.maximum(largest, np.abs(mine.numpy() - theirs).max()))
    return largest


def _smaller(graph: Graph) -> dict[str, Tensor]:
    """The inputs with each free dimension cut: one picture, no positions in the cache."""
    cut = {"batch": 1, "positions": 0}
    inputs = dict(graph.inputs)
    for name, dimensions in graph.free.items():
        for at, kind in dimensions.items():
            inputs[name] = inputs[name].narrow(at, 0, cut[kind])
    return inputs


@contextlib.contextmanager
def _silence() -> Any:
    """Silence the exporter, whose output and warnings are for its own developers."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
