"""Attention over the pixels of a picture, and the key/value cache of the decoder.

One signature, `attend`, whatever computes it: the model does not notice which road is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.kernels import attention_takes, fast_attention


def attend(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, seen: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(width)) v (paper, section 2.2).

    Args:
        query: [B, H, t, width], the last t of the S positions.
        key, value: [B, H, S, width].
        causal: position i sees positions 0 to i only; else it sees all of them.
        seen: the positions [1, S] that a single query (t = 1) sees; None: all of them.

    Returns:
        [B, H, t, width]
    """
    t, s = query.shape[2], key.shape[2]
    if seen is not None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    if t > 1 and attention_takes(query, key):
        return fast_attention(query, key, value, causal)
    if not causal or t == 1:
        return F.scaled_dot_product_attention(query, key, value)
    if t == s:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    seen = torch.ones(t, s, dtype=torch.bool, device=query.device).tril(s - t)  # [t, S]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)


class Cache(Protocol):
    """Keys and values of the positions before, as the blocks read and write them."""

    @property
    def seen(self) -> Tensor | None:
        """The positions [1, S] that a query sees of those that `extend` returns; None: all."""
        ...

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions' key and value [B, H, t, width]; return all [B, H, S, width]."""
        ...


@dataclass
class KVCache:
    """Keys and values of the positions computed so far, for every block.

    There is room for all positions from the start. A block writes its new ones through `extend`,
    and when all blocks have, the model counts them.
    """

    keys: Tensor  # [L, B, H, n_positions, width]
    values: Tensor
    length: int = 0  # positions stored
    seen = None  # all that `extend` returns

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, pictures: Tensor) -> KVCache:
        """The caches of `pictures` [R], which may repeat: one prefix, several continuations."""
        keys, values = (x.index_select(1, pictures) for x in (self.keys, self.values))
        return KVCache(keys, values, self.length)


class FixedCache:
    """A cache for steps of one position whose shapes and addresses never change.

    So a step can be compiled once, and recorded as a CUDA graph: attention reads the whole room,
    of which it sees the positions up to `position`, a tensor.
    """

    def __init__(self, like: KVCache) -> None:
        """An empty one with room for as many pictures as `like`, where it is."""
        # Zeros, since what is not seen is still multiplied, by zero.
        self.keys, self.values = torch.zeros_like(like.keys), torch.zeros_like(like.values)
        self.position = torch.zeros(1, dtype=torch.long, device=like.keys.device)
        self._positions = torch.arange(like.keys.shape[3], device=like.keys.device)[None]  # [1, S]

    @property
    def seen(self) -> Tensor:
        """The positions [1, S] that the one at `position` sees."""
        return self._positions <= self.position

    def fill(self, cache: KVCache) -> None:
        """Take over what `cache`, of the same shape, holds."""
        self.keys[:, :, :, : cache.length] = cache.keys[:, :, :, : cache.length]
        self.values[:, :, :, : cache.length] = cache.values[:, :, :, : cache.length]
        self.position.fill_(cache.length)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the key and value [B, H, 1, width] at `position`; return the whole room."""
        self.keys[layer].index_copy_(2, self.position, key)
        self.values[layer].index_copy_(2, self.position, value)
        return self.keys[layer], self.values[layer]
