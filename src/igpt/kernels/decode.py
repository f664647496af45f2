"""One decoding step in C++: weights packed once, a cache in the order in which it is read.

This module knows tensors but not the model's class; its plain twin is `ImageGPT.next_logits`. There
are two implementations ("backends") of the step in `decode.h`: `decode_tiles.cpp` for matrix tiles
and `decode_vectors.cpp` for the vectors of any processor. They lay out weights differently.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.kernels.build import load, load_for_tiles, threads

UNIT = 32  # inputs, outputs and the width of a head are multiples of it
TOGETHER = 64  # positions that are computed side by side; a cache has room for a multiple of it
LARGEST_INT8 = 127


@dataclass(frozen=True)
class Backend:
    """An implementation: its library, how to lay out weights [outputs, inputs] for it, and in what
    type it stores the cache for each type of weights that it takes.
    """

    name: str
    library: ctypes.CDLL
    pack_weights: Callable[[Tensor], Tensor]
    cache_types: Mapping[torch.dtype, torch.dtype]


@cache
def backends() -> tuple[Backend, ...]:
    """The backends that this machine has, the fastest first."""
    tiles, vectors = load_for_tiles("decode_tiles"), load("decode_vectors")
    found = []
    if tiles is not None:
        types = {torch.bfloat16: torch.bfloat16, torch.int8: torch.bfloat16}
        found.append(Backend("tiles", tiles, _in_tiles, types))
    if vectors is not None:
        types = {kind: kind for kind in (torch.float32, torch.bfloat16, torch.int8)}
        found.append(Backend("vectors", vectors, _in_panels, types))
    return tuple(found)


def _in_tiles(weight: Tensor) -> Tensor:
    """`weight` in tiles, [outputs / 16, inputs / 32, 16, 32]."""
    outputs, inputs = weight.shape
    return weight.view(outputs // 16, 16, inputs // 32, 32).transpose(1, 2)


def _in_panels(weight: Tensor) -> Tensor:
    """`weight` in panels, [outputs / 32, inputs / P, 32, P], with P numbers in a 32-bit word."""
    outputs, inputs = weight.shape
    side = 4 // weight.element_size()
    return _in_words(weight.view(outputs // 32, 32, inputs // side, side).transpose(1, 2))


def _in_words(x: Tensor) -> Tensor:
    """x [..., P], the P numbers of 32-bit words, in a word's order: int8 swaps the middle two."""
    return (x[..., [0, 2, 1, 3]] if x.dtype == torch.int8 else x).contiguous()


def _round_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., n] in int8, and scales [...]: symmetric, a row's largest magnitude becomes 127."""
    x = x.float()
    largest = x.abs().amax(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    scale = largest / LARGEST_INT8
    return (x / scale[..., None]).round().to(torch.int8), scale


class _Linear(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p),
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
        ("bytes", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("layers", ctypes.POINTER(_Layer)),
        ("norm_f", ctypes.c_void_p),
        ("head", _Linear),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
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


class PackedWeights:
    """The weights of all blocks and the head, packed in `dtype`; in int8, a scale for each output.

    `dtype` is one that the backend takes: float32, bfloat16 or int8.
    """

    def __init__(
        self,
        blocks: Sequence[BlockWeights],
        norm_f: Tensor,
        head: Tensor,
        *,
        n_head: int,
        eps: float,
        dtype: torch.dtype,
        backend: Backend,
    ) -> None:
        self._kept: list[Tensor] = []  # keeps alive what the addresses point to
        self.backend = backend
        self.dtype = dtype
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
            len(blocks),
            len(norm_f),
            n_head,
            dtype.itemsize,
            eps,
            layers,
            self._gain(norm_f),
            self._linear(head),
        )

    def _gain(self, weight: Tensor) -> int:
        return self._keep(weight.detach().float())

    def _linear(self, weight: Tensor) -> _Linear:
        weight = weight.detach().float()
        weight = F.pad(weight, (0, 0, 0, -len(weight) % UNIT))
        outputs, inputs = weight.shape
        if self.dtype != torch.int8:
            return _Linear(self._packed(weight.to(self.dtype)), None, outputs, inputs)
        rounded, scales = _round_to_int8(weight)
        return _Linear(self._packed(rounded), self._keep(scales), outputs, inputs)

    def _packed(self, weight: Tensor) -> int:
        return self._keep(self.backend.pack_weights(weight))

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


class PackedCache:
    """Keys and values of the first `length` positions of B pictures, in the kernels' layout.

    `tensors` are keys and values; in int8, their scales [L, B, H, S] too, one for each position.
    """

    def __init__(self, tensors: Sequence[Tensor], length: int) -> None:
        self.tensors, self.length = tuple(tensors), length

    @classmethod
    def pack(cls, keys: Tensor, values: Tensor, length: int, dtype: torch.dtype) -> PackedCache:
        """Pack keys and values [L, B, H, S, D], of which `length` positions are filled."""
        int8 = dtype == torch.int8
        room = keys.shape[3] + -keys.shape[3] % TOGETHER - length
        keys, values = keys[..., :length, :], values[..., :length, :]
        scales: tuple[Tensor, ...] = ()
        if int8:
            (keys, key_scales), (values, value_scales) = map(_round_to_int8, (keys, values))
            scales = (F.pad(key_scales, (0, room)), F.pad(value_scales, (0, room)))
        # Rounded before padding, as padding in float32 would take twice the memory. The zeros add
        # nothing to a result.
        keys, values = (F.pad(x if int8 else x.to(dtype), (0, 0, 0, room)) for x in (keys, values))
        side = 4 // keys.element_size()  # numbers in 32 bits
        L, B, H, S, D = keys.shape
        keys = keys.view(L, B, H, S // 16, 16, D // side, side).transpose(4, 5)
        values = values.view(L, B, H, S // side, side, D).transpose(4, 5)
        return cls((_in_words(keys), _in_words(values), *scales), length)

    @classmethod
    def beside(cls, caches: Sequence[PackedCache]) -> PackedCache:
        """A new cache of the pictures of `caches`, which are of one length and may repeat."""
        parts = zip(*(cache.tensors for cache in caches), strict=True)
        return cls([torch.cat(same, dim=1) for same in parts], caches[0].length)

    @property
    def size(self) -> int:
        """Positions that there is room for."""
        return self.tensors[0].shape[3] * 16

    def struct(self) -> _Cache:
        addresses = [x.data_ptr() for x in self.tensors]
        keys, values, key_scales, value_scales = (*addresses, None, None)[:4]
        return _Cache(keys, values, key_scales, value_scales, self.size, self.length)


def packed_step(weights: PackedWeights, cache: PackedCache, h: Tensor) -> Tensor:
    """Logits [B, K] after the pixels embedded as h [B, d]; extends the cache by one."""
    h = h.to("cpu", torch.float32, copy=True).contiguous()  # the kernel computes in it
    logits = h.new_empty(len(h), weights.model.head.outputs)  # not of the caller's default type
    weights.backend.library.decode_step(
        ctypes.byref(weights.model),
        ctypes.byref(cache.struct()),
        ctypes.c_void_p(h.data_ptr()),
        ctypes.c_void_p(logits.data_ptr()),
        len(h),
        threads(),
    )
    cache.length += 1
    return logits[:, : weights.n_outputs]
