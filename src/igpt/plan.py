"""What a model costs, computed from its shape alone: parameters, FLOPs, bytes.

Arithmetic on `ModelConfig`, so that it can be asked before anything is built. Counts are exact and
compared with the model itself in the tests. L is the number of blocks, d the width, T the tokens of
a picture, K the colours.
"""

from __future__ import annotations

from igpt.config import ModelConfig

# Bytes a number takes, by the names that `train.precision` has for types.
BYTES = {"float32": 4, "bfloat16": 2}


def parameters(config: ModelConfig) -> dict[str, int]:
    """Weights by part; their sum is the whole model. Parts that it does not have are left out."""
    n_layer, d = config.n_layer, config.n_embd
    parts = {
        "token_embedding": config.vocab_size * d,
        "positions": config.n_positions * d,
        "start": d * config.causal,
        "attention": n_layer * (4 * d * d + 4 * d * config.bias),  # q, k, v and the output
        "mlp": n_layer * (8 * d * d + 5 * d * config.bias),  # d -> 4d -> d
        "norms": (2 * n_layer + 1) * d,
        "head": config.vocab_size * d,
        "classifier": config.n_classes * d,
    }
    return {name: count for name, count in parts.items() if count}


def n_parameters(config: ModelConfig) -> int:
    """All weights."""
    return sum(parameters(config).values())


def forward_flops(config: ModelConfig) -> int:
    """FLOPs of one picture's forward pass, all T positions at once, both heads included.

    Matrix products only, a multiplication and an addition counted as two. The causal mask is not
    taken off: attention counts all T x T pairs, as PyTorch's counter does and as plain attention
    computes them, though an autoregressive model needs only half.
    """
    d, n_tokens = config.n_embd, config.n_positions
    projections = 2 * n_tokens * 12 * d * d  # of a block: q, k, v, output and MLP
    attention = 2 * 2 * n_tokens * n_tokens * d  # of a block: q k^T, then its product with v
    heads = 2 * n_tokens * d * config.vocab_size + 2 * d * config.n_classes
    return config.n_layer * (projections + attention) + heads


def training_flops(config: ModelConfig) -> int:
    """FLOPs that one picture costs in a training step: forward, and backward as twice that.

    A product's backward pass is two of the same size. What attention or checkpointing computes
    anew to save memory is not counted.
    """
    return 3 * forward_flops(config)


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all weights in `dtype`, a key of BYTES."""
    return n_parameters(config) * BYTES[dtype]


def cache_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of one picture's key/value cache in `dtype`: T keys and T values of width d a block.

    A BERT model paints no pixel after pixel and keeps none.
    """
    if not config.causal:
        return 0
    return 2 * config.n_layer * config.n_positions * config.n_embd * BYTES[dtype]
