"""Studies of what a model knows: probes of every layer, also with few labels, beside baselines.

All methods are given the same labelled pictures, and the same validation pictures to choose with.
The test pictures are used once, for what was chosen.
"""

from igpt.study.methods import (
    AnyTask,
    AttentionMethod,
    CnnMethod,
    LinearMethod,
    Method,
    ModelFeatures,
    StreamedMethod,
    Subset,
    make_baselines,
    needed_pictures,
)
from igpt.study.outcomes import Summary, Trial, compare, subsets, summarise

__all__ = [
    "AnyTask",
    "AttentionMethod",
    "CnnMethod",
    "LinearMethod",
    "Method",
    "ModelFeatures",
    "StreamedMethod",
    "Subset",
    "Summary",
    "Trial",
    "compare",
    "make_baselines",
    "needed_pictures",
    "subsets",
    "summarise",
]
