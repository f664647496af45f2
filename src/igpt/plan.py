"""What a model costs, computed from its shape alone: parameters, FLOPs, bytes.

Arithmetic on `ModelConfig`, so that nothing has to be built first. Counts are exact, and the tests
compare them with the model itself; the memory of a training step is an estimate, which the tests
compare with measured peaks. L is the number of blocks, d the width, T the tokens of a picture, K
the colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from igpt.config import ModelConfig

# Bytes of a number, by the names that `train.precision` has for types.
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class GPU:
    """A GPU, by its maker's data sheet."""

    memory: int  # bytes
    flops: dict[str, float]  # FLOPs a second of dense products, for each type of BYTES that it has


# NVIDIA's data sheets, the SXM boards. A V100 has no bfloat16.
GPUS = {
    "v100": GPU(32 * 2**30, {"float32": 15.7e12}),
    "a100": GPU(80 * 2**30, {"float32": 19.5e12, "bfloat16": 312e12}),
    "h100": GPU(80 * 2**30, {"float32": 67e12, "bfloat16": 989e12}),
    "h200": GPU(141 * 10**9, {"float32": 67e12, "bfloat16": 989e12}),
}
# Part of a GPU's memory that a plan may fill. The rest is for the driver, the libraries, the gaps
# between tensors, and the error of the estimate (docs/scaling.md).
USABLE = 0.8
FULL_PASS = 1e12  # FLOPs of a forward pass that keep a GPU busy: an estimate, not measured


def parameters(config: ModelConfig) -> dict[str, int]:
    """The number of weights of each part that the model has; their sum is the whole model."""
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
    """The number of all weights."""
    return sum(parameters(config).values())


def forward_flops(config: ModelConfig) -> int:
    """FLOPs of one picture's forward pass, all T positions at once, both heads included.

    Matrix products only, a multiplication and an addition counted as two. Attention counts all
    T x T pairs, as PyTorch's counter does and as plain attention computes them, though the causal
    mask of an autoregressive model leaves only half.
    """
    d, n_tokens = config.n_embd, config.n_positions
    heads = 2 * n_tokens * d * config.vocab_size + 2 * d * config.n_classes
    return config.n_layer * _block_flops(config) + heads


def _block_flops(config: ModelConfig) -> int:
    d, n_tokens = config.n_embd, config.n_positions
    projections = 2 * n_tokens * 12 * d * d  # q, k, v, output and MLP
    attention = 2 * 2 * n_tokens * n_tokens * d  # q k^T, then its product with v
    return projections + attention


def training_flops(config: ModelConfig) -> int:
    """FLOPs that one picture costs in a training step: forward, and backward as twice that.

    The backward pass of a matrix product is two products of the same size. What attention or
    checkpointing recomputes to save memory is not counted.
    """
    return 3 * forward_flops(config)


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all weights in `dtype`, a key of BYTES."""
    return n_parameters(config) * BYTES[dtype]


def cache_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of one picture's key/value cache in `dtype`: T keys and values of width d a block.

    0 for a model that does not paint pixel after pixel, such as a BERT model.
    """
    if not config.can_sample:
        return 0
    return 2 * config.n_layer * config.n_positions * config.n_embd * BYTES[dtype]


# --- memory of a training step -------------------------------------------------------------------


@dataclass(frozen=True)
class Division:
    """How a training step is divided: the settings of a recipe that its memory depends on."""

    rows: int  # pictures in one forward pass of a process
    data: int = 1  # copies of the model
    shard: int = 1  # processes that each copy is split over
    tensor: int = 1  # processes that compute the same pictures and divide the MLPs
    accumulates: bool = False  # whether a step has several forward passes
    checkpointing: bool = False  # of activations
    dtype: str = "float32"  # of the products, a key of BYTES
    processor: bool = False  # on a CPU, whose norm keeps its normalised input as well

    @property
    def holders(self) -> int:
        """Processes that share one copy of the model, and gather a block before it is used."""
        return self.shard * self.tensor


def training_memory(config: ModelConfig, division: Division) -> dict[str, int]:
    """Bytes by part that a process holds at the worst moment of a training step.

    Weights, gradients and Adam's two moments are float32. `copies` are weights in the type of the
    products, or gathered from other processes. `activations` are what is kept for the backward
    pass, and what that pass is computing; `torch.compile` keeps less than is counted here.
    """
    worst = max(_worst_moments(config, division), key=lambda parts: sum(parts.values()))
    weights = 4 * n_parameters(config) // division.holders
    return {"weights": weights, "moments": 2 * weights, **worst}


def activation_bytes(config: ModelConfig, division: Division) -> int:
    """The largest bytes of activations in a step, which need not be at its worst moment."""
    return max(parts["activations"] for parts in _worst_moments(config, division))


def fits(config: ModelConfig, division: Division, gpu: GPU) -> bool:
    """Whether a training step fits into a GPU."""
    return sum(training_memory(config, division).values()) <= USABLE * gpu.memory


def fitting_division(config: ModelConfig, first: Division, gpu: GPU) -> Division | None:
    """The division that is tried first of those that fit, on as many processes; None without one.

    `first` itself, then copies that are split over more processes, then also smaller forward passes
    that still fill a GPU, then activation checkpointing, which costs a third more work, and last
    passes that do not.
    """
    groups = first.data * first.shard
    shards = [n for n in range(1, groups + 1) if groups % n == 0]
    rows = [n for n in range(first.rows, 0, -1) if first.rows % n == 0]
    full = [n for n in rows if n == first.rows or n * forward_flops(config) >= FULL_PASS]
    smaller = [n for n in rows if n not in full]
    passes = [
        *((n, checkpointing) for checkpointing in (False, True) for n in full),
        *((n, checkpointing) for n in smaller for checkpointing in (False, True)),
    ]
    candidates = (
        replace(
            first,
            rows=n,
            data=groups // shard,
            shard=shard,
            checkpointing=checkpointing,
            accumulates=first.accumulates or n < first.rows,
        )
        for n, checkpointing in passes
        for shard in shards
    )
    return next((d for d in (first, *candidates) if fits(config, d, gpu)), None)


def computed_flops(config: ModelConfig, division: Division) -> int:
    """`training_flops` of one picture, plus what is computed more than once.

    Activation checkpointing recomputes every block but for its last product, 4d -> d, whose result
    no gradient needs. With tensor parallelism, each process of a group computes all but the MLPs.
    """
    product = config.n_layer * 2 * config.n_positions * 4 * config.n_embd**2  # one of an MLP's two
    mlp = 3 * 2 * product + product * division.checkpointing
    others = config.n_layer * _block_flops(config) - 2 * product
    rest = training_flops(config) - 3 * 2 * product + others * division.checkpointing
    return mlp + rest * division.tensor


def checkpoint_bytes(config: ModelConfig) -> int:
    """Bytes of a checkpoint on the disk: weights and Adam's two moments, float32."""
    return 3 * weight_bytes(config, "float32")


def _worst_moments(config: ModelConfig, division: Division) -> tuple[dict[str, int], ...]:
    """The three points of a step at which memory can peak, with the bytes held at each, by part.

    Weights and Adam's moments, which are held all the time, are left out.
    """
    return (
        _at_the_loss(config, division),
        _in_the_last_block(config, division),
        _in_the_first_block(config, division),
    )


def _block_parameters(config: ModelConfig, tensor: int = 1) -> int:
    """Weights in a block's matrices and biases, which are gathered together.

    Of the MLP, only the part of one of `tensor` processes.
    """
    parts = parameters(config)
    return (parts["attention"] + parts["mlp"] // tensor) // config.n_layer


def _computed_with(config: ModelConfig, division: Division) -> int:
    """Weights that a process gathers in the course of a step: of the MLPs, only its tensor part."""
    mlp = parameters(config)["mlp"]
    return n_parameters(config) - mlp + mlp // division.tensor


def _kept_gradients(config: ModelConfig, division: Division) -> int:
    """Bytes of gradients that exist already before the step's last backward pass."""
    replicated = division.holders == 1 and division.data > 1  # DistributedDataParallel's buckets
    uncut = division.holders > 1 and division.accumulates  # not exchanged yet, so not split yet
    return 4 * _computed_with(config, division) * (replicated or uncut)


def _gradients_on_their_way(config: ModelConfig, division: Division) -> int:
    """Bytes of a split model's gradients that are being made or exchanged.

    One block's as they are computed, in the type of the products; and in float32, put together for
    the other processes, those of this block and of the block whose exchange is still under way.
    """
    if division.holders == 1:
        return 0
    n_bytes = BYTES[division.dtype]
    converted = 4 * (n_bytes < 4)
    return _block_parameters(config, division.tensor) * (n_bytes + 2 * (4 + converted))


def _copy_bytes(config: ModelConfig, division: Division, blocks: int) -> int:
    """Bytes of weights in another type, of so many `blocks`, or gathered from other processes."""
    n_bytes = BYTES[division.dtype]
    matrices = _block_parameters(config, division.tensor)
    if division.holders == 1:
        return blocks * matrices * n_bytes if n_bytes < 4 else 0
    root = n_parameters(config) - config.n_layer * _block_parameters(config)  # it stays gathered
    return 2 * matrices * n_bytes + 4 * root  # a block, and the next one, which is being gathered


def _kept_in_block(config: ModelConfig, division: Division) -> int:
    """Bytes that a block keeps of each picture for its backward pass.

    In the type of the products: the two normalised inputs, q, k and v, attention's output, and
    three hidden layers of the MLP. In float32: the residual stream before each norm.
    """
    norms = 16 if division.processor else 8
    numbers = 6 + 12 / division.tensor  # the MLP's 12 are divided
    return int(config.n_positions * config.n_embd * (numbers * BYTES[division.dtype] + norms))


def _computed_in_block(config: ModelConfig, division: Division) -> int:
    """Bytes, for each picture, of a block's activation gradients while it is computed backward.

    Two hidden layers of the MLP, and the residual stream.
    """
    hidden = 8 / division.tensor
    return int(config.n_positions * config.n_embd * (hidden * BYTES[division.dtype] + 8))


def _kept_in_blocks(config: ModelConfig, division: Division) -> int:
    """Bytes that all blocks together keep of each picture."""
    if division.checkpointing:
        return config.n_layer * 4 * config.n_positions * config.n_embd  # their inputs, in float32
    return config.n_layer * _kept_in_block(config, division)


def _at_the_loss(config: ModelConfig, division: Division) -> dict[str, int]:
    """When the backward pass begins: every block still holds all that it keeps."""
    residual = config.n_embd * (BYTES[division.dtype] + (8 if division.processor else 4))
    head = config.n_positions * (residual + 3 * 4 * config.vocab_size)  # log p and two gradients
    return {
        "gradients": _kept_gradients(config, division),
        "copies": _copy_bytes(config, division, config.n_layer),
        "activations": division.rows * (_kept_in_blocks(config, division) + head),
    }


def _in_the_last_block(config: ModelConfig, division: Division) -> dict[str, int]:
    """In the last block, which the backward pass comes to first."""
    again = _kept_in_block(config, division) if division.checkpointing else 0
    held = _kept_in_blocks(config, division) + again + _computed_in_block(config, division)
    blocks = 1 if division.checkpointing else config.n_layer
    return {
        "gradients": _kept_gradients(config, division) + _gradients_on_their_way(config, division),
        "copies": _copy_bytes(config, division, blocks),
        "activations": division.rows * held,
    }


def _in_the_first_block(config: ModelConfig, division: Division) -> dict[str, int]:
    """In the first block, which the backward pass comes to last: all other gradients exist."""
    others = 4 * (n_parameters(config) - _block_parameters(config)) // division.holders
    gradients = max(_kept_gradients(config, division), others)
    held = _kept_in_block(config, division) + _computed_in_block(config, division)
    return {
        "gradients": gradients + _gradients_on_their_way(config, division),
        "copies": _copy_bytes(config, division, 1),
        "activations": division.rows * held,
    }
