"""What the model knows of a picture: n^l, pooled over positions (paper, section 2.4).

Layer l is the normalised input of block l, from 0 to L; L stands for the output after the final
norm. All layers come from one pass, and none above the highest one asked for is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from igpt.config import ModelConfig, UserError
from igpt.evaluate import BATCH, in_batches, in_dtype
from igpt.model import ImageGPT
from igpt.order import Codec, Encoded, inverse
from igpt.rng import torch_rng
from igpt.types import Pixels

Features = npt.NDArray[np.float32]
Pool = Callable[[Tensor], Tensor]  # n^l [B, T, d] -> [B, F]
# Tokens [B, T], the place of their first picture and a mask's number -> [B, layers, F].
BatchFeatures = Callable[[Tensor, int, int], Tensor]


def parse_layers(text: str, n_layer: int) -> tuple[int, ...]:
    """Layers of `all`, one number, or `a:b` with both ends; UserError outside 0 to n_layer."""
    if text == "all":
        return tuple(range(n_layer + 1))
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not first <= last <= n_layer:
        raise UserError(f"layer '{text}': expected all, a layer of 0 to {n_layer}, or a range a:b")
    return tuple(range(first, last + 1))


def make_pool(name: str, codec: Codec) -> Pool:
    """What reduces n^l [B, T, d] to [B, F].

    mean: over all positions (the paper's). grid:G: over each of GxG regions of the picture, which
    stay in their places, F = G*G*d. last: the last position. flatten: all of them, in raster order.

    Raises UserError for any other name, and a grid finer than the picture.
    """
    match = re.fullmatch(r"grid:([1-9]\d*)", name)
    if match and int(match[1]) <= codec.image_size:
        return _RegionMeans(codec, int(match[1]))
    pools: dict[str, Pool] = {
        "mean": lambda n: n.mean(dim=1),
        "last": lambda n: n[:, -1],
        "flatten": _Raster(codec),
    }
    if name not in pools:
        size = codec.image_size
        raise UserError(
            f"pool '{name}': expected mean, last, flatten or grid:G with G up to {size}"
        )
    return pools[name]


def pool_width(pool: Pool, config: ModelConfig) -> int:
    """F: how many numbers a pool leaves of a layer."""
    return pool(torch.zeros(1, config.n_positions, config.n_embd)).shape[1]


class _Constant:
    """A tensor and its copies on other devices, which stay where they are: `replay_batches`."""

    def __init__(self, tensor: Tensor) -> None:
        self._copies = {tensor.device: tensor}
        self._tensor = tensor

    def on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self._tensor.to(device)
        return self._copies[device]


class _Raster:
    """All positions in raster order, [B, T * d] of n [B, T, d]."""

    def __init__(self, codec: Codec) -> None:
        self.raster = _Constant(torch.from_numpy(inverse(codec.pi)))

    def __call__(self, n: Tensor) -> Tensor:
        return n[:, self.raster.on(n.device)].flatten(1)


class _RegionMeans:
    """Means over each of side x side regions, [B, side * side * d] of n [B, T, d]."""

    def __init__(self, codec: Codec, side: int) -> None:
        place = torch.arange(codec.image_size) * side // codec.image_size
        region = (place[:, None] * side + place[None, :]).flatten()
        self.region = _Constant(region[torch.from_numpy(codec.pi)])  # of each position, [T]
        self.sizes = _Constant(region.bincount(minlength=side * side)[:, None])

    def __call__(self, n: Tensor) -> Tensor:
        region, sizes = self.region.on(n.device), self.sizes.on(n.device)
        sums = n.new_zeros(len(n), len(sizes), n.shape[2]).index_add_(1, region, n)
        return (sums / sizes).flatten(1)


def extract(
    model: ImageGPT,
    tokens: Tensor,
    layers: Sequence[int],
    pool: Pool,
    *,
    dtype: torch.dtype = torch.float32,
    mask: int = 0,
    check: Callable[[], None] | None = None,
) -> Iterator[Features]:
    """Features [B, len(layers), F] of pictures `tokens` [N, T] in the model's order, by batch.

    A BERT model sees them by the mask of the number `mask`. `check` is called before every batch
    and may raise.
    """
    features = batch_features(model, layers, pool, dtype)
    for part in in_batches(tokens, lambda part, start: features(part, start, mask), check=check):
        yield part.cpu().numpy()


def batch_features(
    model: ImageGPT, layers: Sequence[int], pool: Pool, dtype: torch.dtype
) -> BatchFeatures:
    """What gives the features of a batch; make it once for many, which a GPU then replays."""
    compute = in_dtype(partial(pooled_features, model, layers, pool), model, dtype)

    def features(tokens: Tensor, start: int, mask: int) -> Tensor:
        return compute(*trunk_inputs(model, tokens, start, mask))

    return features


def pooled_features(model: ImageGPT, layers: Sequence[int], pool: Pool, *inputs: Tensor) -> Tensor:
    """Features [B, len(layers), F] of the `trunk_inputs` of one batch."""
    pooled = {}
    for layer, n in enumerate(model.features(*inputs)):
        if layer in layers:
            pooled[layer] = pool(n.float())
        if layer == max(layers):
            break
    return torch.stack([pooled[layer] for layer in layers], dim=1)


def trunk_inputs(model: ImageGPT, tokens: Tensor, start: int, mask: int = 0) -> tuple[Tensor, ...]:
    """What the model's trunk takes of pictures `tokens` [B, T], of which the first's place is
    `start`: beside them, for a BERT model, the positions [B, T] that the mask of a number hides.

    As many as in training: a model that never saw a whole picture is out of its element with one
    (paper, section 4.6). They are drawn for BATCH places at a time, whichever of them are asked
    for.
    """
    if model.config.causal:
        return (tokens,)
    n, n_tokens = tokens.shape
    first = start // BATCH * BATCH
    draws = [
        torch.rand((BATCH, n_tokens), generator=torch_rng(0, "mask", "features", block, mask))
        for block in range(first, start + n, BATCH)
    ]
    masked = torch.cat(draws)[start - first : start - first + n] < model.config.mask_probability
    return tokens, masked


@dataclass(frozen=True)
class Extractor:
    """Pictures in, features out: each group's layers side by side, [B, layers * F]."""

    model: ImageGPT
    codec: Codec
    pool: Pool
    groups: Mapping[str, tuple[int, ...]]  # a probe's name -> its layers
    dtype: torch.dtype

    @property
    def layers(self) -> list[int]:
        """All that are asked for, once, from the lowest."""
        return sorted({layer for group in self.groups.values() for layer in group})

    @cached_property
    def _pooled(self) -> BatchFeatures:
        return batch_features(self.model, self.layers, self.pool, self.dtype)

    @torch.no_grad()
    def batch(self, tokens: Tensor, start: int) -> dict[str, Tensor]:
        """[B, F] by name, of a batch [B, T] whose first picture's place is `start`."""
        parts = [
            self._pooled(tokens[i : i + BATCH], start + i, 0) for i in range(0, len(tokens), BATCH)
        ]
        return self._grouped(torch.cat(parts))

    def every(self, images: Pixels | Encoded) -> Iterator[dict[str, Features]]:
        """The same of a whole set, a few pictures at a time; shared by all processes."""
        tokens = torch.from_numpy(self.codec.encode(images))
        for pooled in extract(self.model, tokens, self.layers, self.pool, dtype=self.dtype):
            parts = self._grouped(torch.from_numpy(pooled))
            yield {name: part.numpy() for name, part in parts.items()}

    def whole(self, images: Pixels | Encoded) -> dict[str, Features]:
        """The same at once, [N, F] by name, in no more room than they take."""
        found, done = dict[str, Features](), 0
        for part in self.every(images):
            for name, rows in part.items():
                if name not in found:
                    found[name] = np.empty((len(images), rows.shape[1]), np.float32)
                found[name][done : done + len(rows)] = rows
            done += len(rows)
        return found

    def _grouped(self, pooled: Tensor) -> dict[str, Tensor]:
        at = {layer: i for i, layer in enumerate(self.layers)}
        return {
            name: pooled[:, [at[layer] for layer in group]].flatten(1)
            for name, group in self.groups.items()
        }
