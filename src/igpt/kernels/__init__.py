"""Faster code than PyTorch's own ("roads"), each tested against a plain twin in PyTorch or NumPy.

`IGPT_KERNELS=0` in the environment turns all of them off.
"""

from igpt.kernels.activation import fast_quick_gelu, gelu_takes
from igpt.kernels.attention import attention_takes, fast_attention
from igpt.kernels.decode import BlockWeights, PackedCache, PackedWeights, Road, packed_step, roads
from igpt.kernels.palette import ColorCells, color_cells

__all__ = [
    "BlockWeights",
    "ColorCells",
    "PackedCache",
    "PackedWeights",
    "Road",
    "attention_takes",
    "color_cells",
    "fast_attention",
    "fast_quick_gelu",
    "gelu_takes",
    "packed_step",
    "roads",
]
