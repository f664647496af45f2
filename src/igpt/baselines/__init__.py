"""What a model is compared with: counts for likelihood; neighbours and a CNN for classes."""

from igpt.baselines.cnn import LEAST_STEPS, predict_cnn, train_cnn
from igpt.baselines.counts import context_nats, position_histogram_nats
from igpt.baselines.neighbours import fit_neighbours

__all__ = [
    "LEAST_STEPS",
    "context_nats",
    "fit_neighbours",
    "position_histogram_nats",
    "predict_cnn",
    "train_cnn",
]
