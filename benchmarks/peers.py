"""The same work, done by igpt and by `transformers` with the same weights: units for a contest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import DEVICE, ON_GPU
from pictures import KINDS
from torch import Tensor, nn

from igpt.attention import attend
from igpt.config import ModelConfig
from igpt.decoders import PackedDecoder, PlainDecoder, ReplayedDecoder, new_decoder
from igpt.device import autocast, begin_step, compile_training, compute_dtype, reuse_memory
from igpt.evaluate import picture_nats
from igpt.folder import save_model
from igpt.model import ImageGPT
from igpt.objectives import AR
from igpt.order import Codec
from igpt.palette import Palette
from igpt.parallel.sharding import draw_whole
from igpt.plan import training_flops
from igpt.probe.features import extract, make_pool
from igpt.train import ObjectiveModule

Work = Callable[[], object]

SMALL = ModelConfig(n_layer=8, n_embd=128, n_head=4, vocab_size=512, n_positions=1024)
IGPT_S = ModelConfig(n_layer=24, n_embd=512, n_head=8, vocab_size=512, n_positions=1024)
OURS = compute_dtype("auto", DEVICE)  # what igpt computes in here


def at_length(config: ModelConfig, n_positions: int) -> ModelConfig:
    return replace(config, n_positions=n_positions)


def palette(n_colors: int = 512) -> Palette:
    clusters = np.random.default_rng(0).uniform(-1, 1, (n_colors, 3)).astype(np.float32)
    return Palette(clusters)


def ours(config: ModelConfig) -> ImageGPT:
    """A model from a seed, with a head that is not zero."""
    generator = torch.Generator().manual_seed(0)
    model = ImageGPT(config)
    model.init_weights(draw_whole(generator))
    with torch.no_grad():
        model.head.weight.normal_(std=0.02, generator=generator)
    return model.to(DEVICE)


def theirs(config: ModelConfig) -> Any:
    """The same weights in `transformers`."""
    from transformers import ImageGPTForCausalImageModeling

    size = round(config.n_positions**0.5)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), ours(config), Codec(palette(), "raster", size))
        model: nn.Module = ImageGPTForCausalImageModeling.from_pretrained(folder)
        return model.to(DEVICE)


def tokens(config: ModelConfig, batch: int, n: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, n or config.n_positions)
    return torch.randint(config.vocab_size, shape, generator=generator).to(DEVICE)


def _start_first(config: ModelConfig, pictures: Tensor) -> Tensor:
    """Their input: the start token, then all but the last pixel."""
    start = torch.full((len(pictures), 1), config.vocab_size, device=DEVICE)
    return torch.cat((start, pictures[:, :-1]), dim=1)


# --- training ------------------------------------------------------------------------------------


def train_ours(
    config: ModelConfig, batch: int, kernels: bool, compiled: bool, keep_memory: bool = True
) -> Work:
    """A step as the loop does it; without kernels: on plain PyTorch."""
    if kernels and keep_memory:
        reuse_memory()
    if not kernels:
        os.environ["IGPT_KERNELS"] = "0"
    model, objective, pictures = ours(config), AR(), tokens(config, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    module: Callable[..., Tensor] = ObjectiveModule(model, objective)
    values = compile_training(module, DEVICE, alone=True) if compiled else module

    def step() -> None:
        if compiled:
            begin_step()
        with autocast(DEVICE, OURS):
            loss = values(pictures).sum() / batch
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def train_theirs(config: ModelConfig, batch: int, dtype: torch.dtype) -> Work:
    model, pictures = theirs(config).train(), tokens(config, batch)
    inputs = _start_first(config, pictures)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        with autocast(DEVICE, dtype):
            logits = model(input_ids=inputs).logits[..., : config.vocab_size]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), pictures.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


# --- scoring -------------------------------------------------------------------------------------


def score_ours(config: ModelConfig, n: int, batch: int, dtype: torch.dtype) -> Work:
    """Of n pictures, `batch` side by side."""
    reuse_memory()
    model, pictures = ours(config).eval(), tokens(config, n)
    return lambda: picture_nats(model, AR(), pictures, batch, dtype)


def score_theirs(config: ModelConfig, n: int, batch: int) -> Work:
    model, pictures = theirs(config).eval(), tokens(config, n)

    @torch.inference_mode()
    def unit() -> None:
        for part in torch.split(pictures, batch):
            logits = model(input_ids=_start_first(config, part)).logits[..., : config.vocab_size]
            nn.functional.cross_entropy(logits.flatten(0, 1), part.flatten(), reduction="none")

    return unit


# --- sampling ------------------------------------------------------------------------------------


def sample_ours(
    config: ModelConfig, batch: int, given: int, steps: int, precision: str, kernels: bool = True
) -> Work:
    """Steps from `given` positions on, the same ones in every unit; plain ones without kernels."""
    if not kernels:
        os.environ["IGPT_KERNELS"] = "0"
    model, pictures = ours(config).eval(), tokens(config, batch)
    with torch.inference_mode():
        decoder = new_decoder(model, precision)
        decoder.prefill(pictures[:1, : given - 1])
        decoder.select(torch.zeros(batch, dtype=torch.long, device=DEVICE))

    @torch.inference_mode()
    def unit() -> None:
        assert isinstance(decoder, PlainDecoder | PackedDecoder | ReplayedDecoder)
        assert decoder.cache is not None
        decoder.cache.length = given
        if isinstance(decoder, PlainDecoder):
            decoder.tokens = decoder.tokens[:, : given - 1]
        token = pictures[:, given - 1]
        for _ in range(steps):
            token = decoder.step(token).argmax(dim=-1)

    return unit


def sample_theirs(
    config: ModelConfig, batch: int, given: int, steps: int, dtype: torch.dtype
) -> Work:
    from transformers import DynamicCache

    model, pictures = theirs(config).eval().to(dtype), tokens(config, batch)
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=pictures[:1, :given], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(batch)

    @torch.inference_mode()
    def unit() -> None:
        token = pictures[:, given - 1 : given]
        for _ in range(steps):
            logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:, : config.vocab_size].argmax(dim=-1)
        cache.crop(-steps)

    return unit


def complete_ours(config: ModelConfig, n: int, together: bool) -> Work:
    """n completions of one half picture: its half read in one pass, or pixel by pixel n times."""
    model, half = ours(config).eval(), tokens(config, 1, config.n_positions // 2)

    @torch.inference_mode()
    def unit() -> None:
        decoder = new_decoder(model)
        if together:
            decoder.prefill(half)
            decoder.select(torch.zeros(n, dtype=torch.long, device=DEVICE))
        else:
            decoder.prefill(half[:, :0])
            decoder.select(torch.zeros(n, dtype=torch.long, device=DEVICE))
            for position in range(half.shape[1]):
                decoder.step(half[:, position].expand(n))

    return unit


# --- attention and features ----------------------------------------------------------------------


def attend_causally(
    shape: tuple[int, int, int, int], kernels: bool, backward: bool = False
) -> Work:
    """One pass, or both, of queries, keys and values [B, H, T, D] as the model makes them."""
    if not kernels:
        os.environ["IGPT_KERNELS"] = "0"
    B, H, T, D = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, T, 3, H, D, generator=generator).to(DEVICE, OURS).permute(2, 0, 3, 1, 4)
    if not backward:
        with torch.inference_mode():
            query, key, value = qkv

        @torch.inference_mode()
        def forward() -> None:
            attend(query, key, value, causal=True)

        return forward
    query, key, value = qkv.requires_grad_().unbind()
    gradient = torch.randn(B, T, H, D, generator=generator).to(DEVICE, OURS).transpose(1, 2)

    def both() -> None:
        out = attend(query, key, value, causal=True)
        torch.autograd.grad(out, (query, key, value), gradient)

    return both


def attention_gflops(shape: tuple[int, int, int, int]) -> float:
    """Of both products, for the half of the pairs that a causal mask leaves."""
    B, H, T, D = shape
    return 2 * 2 * B * H * T * T * D / 2 / 1e9


def features_ours(config: ModelConfig, n: int, dtype: torch.dtype) -> Work:
    """Means over positions of every layer's normalised input, from one pass a batch."""
    reuse_memory()
    model, pictures = ours(config).eval(), tokens(config, n)
    codec = Codec(palette(), "raster", round(config.n_positions**0.5))
    layers, pool = range(config.n_layer + 1), make_pool("mean", codec)
    return lambda: list(extract(model, pictures, layers, pool, dtype=dtype))


def features_theirs(config: ModelConfig, n: int, batch: int) -> Work:
    model, pictures = theirs(config).eval(), tokens(config, n)

    @torch.inference_mode()
    def unit() -> None:
        for part in torch.split(pictures, batch):
            inputs = _start_first(config, part)
            found = model.transformer(input_ids=inputs, output_hidden_states=True).hidden_states
            torch.stack([states.mean(dim=1) for states in found]).cpu()

    return unit


# --- palette -------------------------------------------------------------------------------------


def encode_ours(n: int, kind: str) -> Work:
    """Tokens of `n` pictures, one of KINDS."""
    pictures, colours = KINDS[kind](n), palette()
    return lambda: colours.encode(pictures)


def encode_theirs(n: int, kind: str) -> Work:
    from transformers import ImageGPTImageProcessor

    pictures = list(KINDS[kind](n))
    clusters = palette().clusters
    size = {"height": 32, "width": 32}
    processor = ImageGPTImageProcessor(clusters=clusters, size=size)
    return lambda: processor(pictures, return_tensors="np")


# --- the machine's limits ------------------------------------------------------------------------


def matrix_products(config: ModelConfig, batch: int) -> Work:
    """Every product with weights of a training step, in the type of ours."""
    rows, shapes = batch * config.n_positions, weight_shapes(config)
    x = {size: torch.randn(rows, size).to(DEVICE, OURS) for shape in shapes for size in shape}
    weights = [torch.randn(n, m).to(DEVICE, OURS) for n, m in shapes]

    def unit() -> None:
        for (n, m), weight in zip(shapes, weights, strict=True):
            torch.mm(x[n], weight)
            torch.mm(x[m], weight.t())
            torch.mm(x[n].t(), x[m])

    return unit


def weight_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """Of all matrices that multiply a picture's positions."""
    d = config.n_embd
    blocks = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)] * config.n_layer
    return [*blocks, (d, config.vocab_size)]


def product_flops(config: ModelConfig, batch: int) -> float:
    """FLOPs of `matrix_products`: of each matrix, forward, and twice backward."""
    return sum(6.0 * batch * config.n_positions * n * m for n, m in weight_shapes(config))


def needed_flops(config: ModelConfig) -> float:
    """FLOPs that a picture's training step cannot do without.

    Of the pairs of positions that `training_flops` counts, as PyTorch does, a causal mask leaves
    half.
    """
    attention = 4 * config.n_positions**2 * config.n_embd  # q k^T, then its product with v
    return training_flops(config) - 3 * config.n_layer * attention / 2


STREAMED = 2_000_000_000 if ON_GPU else 200_000_000  # bytes, more than caches hold


def memory_stream() -> Work:
    """A dot product of an array with itself, which reads STREAMED bytes."""
    x = torch.ones(STREAMED // 4, device=DEVICE)
    return lambda: torch.dot(x, x)
