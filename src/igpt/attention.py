"""Attention over the pixels of a picture, and the key/value cache of the decoder.

One signature, `attend`, whatever computes it: the model does not notice which backend is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.kernels.attention import attention_takes, fast_attention


def attend(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, bias: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(width)) v (paper, section 2.2).

    Args:
        query: [B, H, t, width], the last t of the S positions.
        key, value: [B, H, S, width].
        causal: position i sees positions 0 to i only; else it sees all of them.
        bias: added to the scores [1, S] of a single query (t = 1): 0 where it sees the position,
            else minus infinity. None: it sees all of them.

    Returns:
        [B, H, t, width]
    """
    t, s = query.shape[2], key.shape[2]
    if bias is not None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
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
    def bias(self) -> Tensor | None:
        """`attend`'s, for what `extend` returns; None: a query sees all of it."""
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
    bias = None  # all that `extend` returns is seen

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

    So a step can be recorded as a CUDA graph: attention reads the first `room` positions, of which
    it sees those up to `length`, which is on the device too.
    """

    def __init__(self, like: KVCache, pictures: int) -> None:
        """An empty one, where `like` is, with room for as many positions."""
        shape = (like.keys.shape[0], pictures, *like.keys.shape[2:])
        # Zeros, since what is not seen is still multiplied, by zero.
        self.keys = torch.zeros(shape, dtype=like.keys.dtype, device=like.keys.device)
        self.values = torch.zeros_like(self.keys)
        self.position = torch.zeros(1, dtype=torch.long, device=self.keys.device)
        self._positions = torch.arange(shape[3], device=self.keys.device)[None]  # [1, S]
        self._length = 0

    @property
    def length(self) -> int:
        """Positions stored."""
        return self._length

    @length.setter
    def length(self, length: int) -> None:
        self._length = length
        self.position.fill_(length)

    def fill(self, cache: KVCache, pictures: Tensor) -> None:
        """Take over what `cache` holds of `pictures` [R], which may repeat."""
        for room, held in ((self.keys, cache.keys), (self.values, cache.values)):
            room[:, :, :, : cache.length] = held[:, :, :, : cache.length].index_select(1, pictures)
        self.length = cache.length

    def set_room(self, room: int) -> None:
        """Before the blocks of each step: it reads `room` positions, more than are stored."""
        self.room = room
        unseen = self._positions[:, :room] > self.position
        # Once for all blocks: of a mask of booleans each of them would make this anew.
        bias = torch.zeros(unseen.shape, dtype=self.keys.dtype, device=unseen.device)
        self.bias = bias.masked_fill(unseen, -torch.inf)  # [1, room]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the key and value [B, H, 1, width] at `length`; return all that is read."""
        self.keys[layer].index_copy_(2, self.position, key)
        self.values[layer].index_copy_(2, self.position, value)
        return self.keys[layer, :, :, : self.room], self.values[layer, :, :, : self.room]
