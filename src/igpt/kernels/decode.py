"""One decoding step on matrix tiles: weights packed once, a cache in the order in which it is read.

Knows tensors and no model; its plain twin is `ImageGPT.next_logits`. The layouts are those of
`decode.cpp`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.kernels.build import load_for_tiles

UNIT = 32  # inputs, outputs and the width of a head are multiples of it
TOGETHER = 64  # positions that are computed side by side: room is made for a multiple of it
LARGEST_INT8 = 127


def can_decode() -> bool:
    """Whether `tile_step` can be called here."""
    return load_for_tiles("decode") is not None


class _Linear(ctypes.Structure):
    _fields_ = (
        ("tiles", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("outputs", ctypes.c_int),
        ("inputs", ctypes.c_int),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("norm_1", ctypes.c_void_p),
        ("norm_2", ctypes.c_void_p),
        ("qkv", _Linear),
        ("proj", _Linear),
        ("fc", _Linear),
        ("out", _Linear),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("n_layer", ctypes.c_int),
        ("d", ctypes.c_int),
        ("n_head", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("layers", ctypes.POINTER(_Layer)),
        ("norm_f", ctypes.c_void_p),
        ("head", _Linear),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("S", ctypes.c_int),
        ("length", ctypes.c_int),
    )


@dataclass(frozen=True)
class BlockWeights:
    """A block's gains [d] and matrices [outputs, inputs]; q, k and v are stacked."""

    norm_1: Tensor
    norm_2: Tensor
    qkv: Tensor
    proj: Tensor
    fc: Tensor
    out: Tensor


class TileWeights:
    """The weights of all blocks and the head, packed; in int8, a scale for each output."""

    def __init__(
        self,
        blocks: Sequence[BlockWeights],
        norm_f: Tensor,
        head: Tensor,
        *,
        n_head: int,
        eps: float,
        int8: bool,
    ) -> None:
        self._kept: list[Tensor] = []  # what the addresses point to
        self._int8 = int8
        self.n_outputs = len(head)
        layers = (_Layer * len(blocks))(
            *(
                _Layer(
                    self._gain(block.norm_1),
                    self._gain(block.norm_2),
                    *map(self._linear, (block.qkv, block.proj, block.fc, block.out)),
                )
                for block in blocks
            )
        )
        self.model = _Model(
            len(blocks), len(norm_f), n_head, eps, layers, self._gain(norm_f), self._linear(head)
        )

    @property
    def bytes(self) -> int:
        """What a step reads of them."""
        return sum(tensor.nbytes for tensor in self._kept)

    def _gain(self, weight: Tensor) -> int:
        return self._keep(weight.detach().float())

    def _linear(self, weight: Tensor) -> _Linear:
        weight = weight.detach().float()
        weight = F.pad(weight, (0, 0, 0, -len(weight) % UNIT))
        scales = None
        if self._int8:
            # Symmetric, by rows: the largest weight of an output becomes 127.
            largest = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
            weight = (weight * (LARGEST_INT8 / largest)[:, None]).round()
            scales = self._keep(largest / LARGEST_INT8)
        outputs, inputs = weight.shape
        tiles = weight.view(outputs // 16, 16, inputs // 32, 32).transpose(1, 2)
        kind = torch.int8 if self._int8 else torch.bfloat16
        return _Linear(self._keep(tiles.to(kind)), scales, outputs, inputs)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


class TileCache:
    """Keys and values of the first `length` positions of B pictures, in the kernel's layout."""

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        self.keys, self.values, self.length = keys, values, length

    @classmethod
    def pack(cls, keys: Tensor, values: Tensor, length: int) -> TileCache:
        """Of keys and values [L, B, H, S, D], of which `length` positions are there."""
        L, B, H, S, D = keys.shape
        more = -S % TOGETHER
        keys, values = (x.to(torch.bfloat16).clone() for x in (keys, values))
        for x in (keys, values):
            x[..., length:, :] = 0  # what is not there weighs nothing, whatever memory held
        keys, values = (F.pad(x, (0, 0, 0, more)) for x in (keys, values))
        S += more
        keys = keys.view(L, B, H, S // 16, 16, D // 2, 2).transpose(4, 5)
        values = values.view(L, B, H, S // 2, 2, D).transpose(4, 5)
        return cls(keys.contiguous(), values.contiguous(), length)

    def select(self, pictures: Tensor) -> TileCache:
        """The caches of `pictures` [R], which may repeat."""
        keys, values = (x.index_select(1, pictures) for x in (self.keys, self.values))
        return TileCache(keys, values, self.length)

    @property
    def bytes(self) -> int:
        """What a step reads of the positions that are there."""
        S = self.keys.shape[3] * 16
        return (self.keys.nbytes + self.values.nbytes) * self.length // S

    def struct(self) -> _Cache:
        S = self.keys.shape[3] * 16
        return _Cache(self.keys.data_ptr(), self.values.data_ptr(), S, self.length)


def tile_step(weights: TileWeights, cache: TileCache, h: Tensor) -> Tensor:
    """Logits [B, K] after the pixels embedded as h [B, d] float32; the cache is one longer then."""
    library = load_for_tiles("decode")
    assert library is not None
    h = h.contiguous().clone()
    logits = torch.empty(len(h), weights.model.head.outputs)
    library.decode_step(
        ctypes.byref(weights.model),
        ctypes.byref(cache.struct()),
        ctypes.c_void_p(h.data_ptr()),
        ctypes.c_void_p(logits.data_ptr()),
        len(h),
        torch.get_num_threads(),
    )
    cache.length += 1
    return logits[:, : weights.n_outputs]
