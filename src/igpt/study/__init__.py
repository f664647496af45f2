"""Studies of what a model knows: its probe at every layer, and with few labels, beside baselines.

All methods are given the same labelled pictures, and the same validation pictures to choose with;
test is looked at once, by what was chosen.
"""

from igpt.study.methods import (
    AnyTask,
    AttentionMethod,
    CnnMethod,
    LinearMethod,
    Method,
    ModelFeatures,
    ProbeFit,
    ProbeMethod,
    StreamedMethod,
    Subset,
    make_baselines,
    needed_pictures,
    unlabelled,
)
from igpt.study.outcomes import Summary, Trial, compare, subsets, summarise

__all__ = [
    "AnyTask",
    "AttentionMethod",
    "CnnMethod",
    "LinearMethod",
    "Method",
    "ModelFeatures",
    "ProbeFit",
    "ProbeMethod",
    "StreamedMethod",
    "Subset",
    "Summary",
    "Trial",
    "compare",
    "make_baselines",
    "needed_pictures",
    "subsets",
    "summarise",
    "unlabelled",
]
