"""Decoders: the pixels of several pictures in, a step at a time, the next one's logits out.

`PlainDecoder` is the model with its cache. `ReplayedDecoder` does the same on a GPU in one graph a
step; `PackedDecoder` on a processor in one call, from weights of 32, 16 or 8 bits. What samples
knows neither cache nor weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from igpt.attention import FixedCache, KVCache
from igpt.config import SAMPLING_PRECISIONS, UserError
from igpt.device import autocast, check_precision, compute_dtype, record_step, replays_steps
from igpt.kernels.decode import (
    UNIT,
    Backend,
    BlockWeights,
    PackedCache,
    PackedWeights,
    backends,
    packed_step,
)
from igpt.model import NORM_EPS, Block, ImageGPT


class Decoder(Protocol):
    """Decodes R pictures side by side, all at the same position."""

    def prefill(self, prefix: Tensor) -> Tensor:
        """Begin anew with pictures `prefix` [P, t]: logits [P, K] of their next pixel."""
        ...

    def select(self, pictures: Tensor) -> None:
        """Before the first step: go on with `pictures` [R] of the prefixes, which may repeat.

        Called again it goes on from the prefixes again, with others of them.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [R, K] of the pixel after `tokens` [R]."""
        ...


class PlainDecoder:
    """The model with its own cache, in the type of its weights, on its device."""

    def __init__(self, model: ImageGPT) -> None:
        self.model = model
        self.cache: KVCache | None = None
        self._started: KVCache | None = None

    def prefill(self, prefix: Tensor) -> Tensor:
        self.cache = self._started = None  # before others take their room
        self._started, self._prefix = self.model.new_cache(len(prefix)), prefix
        return self.model.next_logits(prefix, self._started)

    def select(self, pictures: Tensor) -> None:
        assert self._started is not None
        self.cache = None  # before another takes its room
        self.cache = self._started.select(pictures)
        self.tokens = self._prefix[pictures]  # [R, t]

    def step(self, tokens: Tensor) -> Tensor:
        assert self.cache is not None
        self.tokens = torch.cat((self.tokens, tokens[:, None]), dim=1)
        return self.model.next_logits(self.tokens, self.cache)


ROOM = 128  # positions by which what a recorded step reads grows


class ReplayedDecoder:
    """The same step after step in recorded graphs, which a GPU replays without being told more.

    One for each ROOM positions, so that attention reads little of what is not stored yet. They are
    recorded and not compiled, as the compiler takes longer than most calls. The cache is
    `FixedCache`, as graphs repeat the very same addresses.
    """

    def __init__(self, model: ImageGPT) -> None:
        self.model = model
        self.cache: FixedCache | None = None
        self._started: KVCache | None = None
        self._steps: dict[int, Callable[[], Tensor]] = {}  # by the positions that they read

    def prefill(self, prefix: Tensor) -> Tensor:
        self._started = None  # before another takes its room
        self._started = self.model.new_cache(len(prefix))
        return self.model.next_logits(prefix, self._started)

    def select(self, pictures: Tensor) -> None:
        """Take over what was started, in the room of the pictures before if they were as many."""
        assert self._started is not None
        if self.cache is None or self.cache.keys.shape[1] != len(pictures):
            self._steps.clear()
            self.cache = None  # before another takes its room
            self.cache = FixedCache(self._started, len(pictures))
            self._tokens = torch.zeros_like(pictures)
        self.cache.fill(self._started, pictures)

    def step(self, tokens: Tensor) -> Tensor:
        cache = self.cache
        assert cache is not None
        room = min(cache.length // ROOM * ROOM + ROOM, self.model.config.n_positions)
        self._tokens.copy_(tokens)
        if room not in self._steps:
            self._steps[room] = record_step(
                lambda: self.model.step_logits(self._tokens, cache, room), tokens.device
            )
        logits = self._steps[room]().clone()
        cache.length += 1
        return logits


class PackedDecoder:
    """The same with packed weights; prefixes are read by the model itself, each in one pass.

    What it gives for a picture does not depend on the pictures beside it, to the bit.
    """

    def __init__(self, model: ImageGPT, backend: Backend, dtype: torch.dtype) -> None:
        self.model = model
        self.cache: PackedCache | None = None
        self._started: list[PackedCache] = []  # of each prefix
        self.weights = PackedWeights(
            [_block_weights(block) for block in model.blocks],
            model.ln_f.weight,
            model.head.weight,
            n_head=model.config.n_head,
            eps=NORM_EPS,
            dtype=dtype,
            backend=backend,
        )

    @staticmethod
    def takes(model: ImageGPT) -> bool:
        """Whether a kernel is there, and made for models of this kind and size."""
        c = model.config
        return (
            type(model) is ImageGPT  # what a subclass computes the kernel does not know
            and all(type(block) is Block for block in model.blocks)
            and model.wte.device.type == "cpu"
            and model.wte.dtype == torch.float32
            and c.activation == "quick_gelu"
            and not c.bias
            and c.n_embd % UNIT == 0
            and c.n_embd // c.n_head % UNIT == 0
            and bool(backends())
        )

    def prefill(self, prefix: Tensor) -> Tensor:
        device, stored = self.model.wte.device, self.weights.dtype
        dtype = compute_dtype("float32" if stored == torch.float32 else "auto", device)
        kind = self.weights.backend.cache_types[stored]
        self.cache, self._started = None, []  # before others take their room
        logits = []
        with autocast(device, dtype):
            for one in torch.split(prefix, 1):  # sums may be ordered by how many rows a product has
                cache = self.model.new_cache(1, dtype)
                logits.append(self.model.next_logits(one, cache).float())
                started = PackedCache.pack(cache.keys, cache.values, cache.length, kind)
                self._started.append(started)
        return torch.cat(logits)

    def select(self, pictures: Tensor) -> None:
        self.cache = None  # before another takes its room
        self.cache = PackedCache.beside([self._started[i] for i in pictures.tolist()])

    def step(self, tokens: Tensor) -> Tensor:
        assert self.cache is not None
        h = self.model.wte[tokens] + self.model.wpe[self.cache.length]  # [R, d]
        return packed_step(self.weights, self.cache, h)


def _block_weights(block: Block) -> BlockWeights:
    attention, mlp = block.attn, block.mlp
    return BlockWeights(
        block.ln_1.weight,
        block.ln_2.weight,
        attention.qkv.weight,
        attention.proj.weight,
        mlp.fc.weight,
        mlp.proj.weight,
    )


def new_decoder(model: ImageGPT, precision: str = "auto") -> Decoder:
    """The fastest decoder of a precision; "auto" takes bfloat16 where there is one made for it.

    On a processor that is how weights and cache are stored: one without bfloat16 products computes
    in float32. "int8" rounds the weights to 8 bits and, without matrix tiles, the cache too. Raises
    UserError where there is nothing that decodes with them, and for a precision of another name.
    """
    check_precision(precision, SAMPLING_PRECISIONS)
    packed = PackedDecoder.takes(model)
    if precision == "int8" and not packed:
        raise UserError(
            "weights of 8 bits need a C++ compiler, IGPT_KERNELS other than 0, and a model on the "
            f"processor, without biases, whose heads are a multiple of {UNIT} wide"
        )
    if packed:
        stored = getattr(torch, "bfloat16" if precision == "auto" else precision)
        backend = next(backend for backend in backends() if stored in backend.cache_types)
        return PackedDecoder(model, backend, stored)
    device = model.wte.device
    dtype = compute_dtype(precision, device)
    if dtype != model.wte.dtype:
        model = copy.deepcopy(model).to(dtype)
    return ReplayedDecoder(model) if replays_steps(device) else PlainDecoder(model)
