"""Everything a run can be told: dataclasses that explain and check themselves, and presets.

`igpt --help` reads this module, so it imports nothing heavy at load.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args


class UserError(Exception):
    """A mistake of the user's, in one line that says what was expected (exit status 2)."""


class Diverged(UserError):
    """A training whose losses or weights are not finite any more."""


def first_line(error: BaseException | str) -> str:
    """What an error of a library says, shortened to stand in one line of ours."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


SUBSETS = 5  # random ones of each number of labels, as in the paper
Precision = Literal["auto", "float32", "bfloat16"]  # of the model's products
PRECISIONS: tuple[str, ...] = get_args(Precision)
SAMPLING_PRECISIONS = (*PRECISIONS, "int8")  # of the weights and cache that sampling reads
Objective = Literal["ar", "bert"]  # of pretraining (paper, section 2.1)
Augmentation = Literal["none", "flip", "cifar", "imagenet"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)
Metric = Literal["accuracy", "balanced_accuracy"]  # that validation chooses by
METRICS: tuple[str, ...] = get_args(Metric)
Ensemble = Literal["modal", "logits"]  # how the masks of a BERT model vote (paper, section 4.6)
ENSEMBLES: tuple[str, ...] = get_args(Ensemble)
Say = Callable[[str], None]  # how a command tells what it does


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _at_least_one(section: str, config: Any, *names: str) -> None:
    """Require of the fields `names`, where they are given."""
    for name in names:
        value = getattr(config, name)
        _require(value is None or value >= 1, f"{section}.{name} must be at least 1, got {value}")


# Of the MLP. OpenAI's is x * sigmoid(1.702 x); the others are for models made elsewhere.
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "relu", "silu")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an Image GPT (paper, section 3.3).

    Raises UserError when the sizes do not fit together.
    """

    n_layer: int  # L, blocks
    n_head: int
    n_embd: int  # d, width of the residual stream; the MLP is 4d wide
    vocab_size: int  # K, colours of the palette
    n_positions: int  # T, pixels of a picture
    n_classes: int = 0  # outputs of the classification head; 0: no head
    causal: bool = True  # AR: start token, shift and causal mask; False: BERT
    mask_probability: float = 0.15  # BERT only: of each position, to be hidden (paper, section 2.1)
    bias: bool = False  # OpenAI's models have none; some foreign checkpoints do
    activation: str = "quick_gelu"  # one of ACTIVATIONS
    # False: position i reads token i itself, as classifiers of transformers do; no next pixel then.
    shift: bool = True

    def __post_init__(self) -> None:
        _at_least_one("model", self, "n_layer", "n_head", "n_embd", "vocab_size", "n_positions")
        _require(
            self.n_embd % self.n_head == 0,
            f"model: n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})",
        )
        _require(
            0 < self.mask_probability < 1,
            f"mask_probability must lie between 0 and 1, got {self.mask_probability}",
        )
        _require(
            self.activation in ACTIVATIONS,
            f"model: activation '{self.activation}', expected one of: {', '.join(ACTIVATIONS)}",
        )

    @property
    def can_sample(self) -> bool:
        """Whether it predicts each pixel from those before it, so that it can sample pictures."""
        return self.causal and self.shift

    @property
    def predicts_pixels(self) -> bool:
        """Whether there are pixels that it predicts without being shown them: a likelihood."""
        return self.can_sample or not self.causal

    @property
    def objective(self) -> Objective:
        """What it is trained to do, as recipes name it."""
        return "ar" if self.causal else "bert"

    @property
    def kind(self) -> str:
        """The same, as people name it."""
        return "autoregressive" if self.causal else "BERT"


@dataclass(frozen=True)
class Preset:
    """Depth, heads and width that go by one name."""

    n_layer: int
    n_head: int
    n_embd: int


# S, M and L as released by OpenAI (src/run.py) and XL as in the paper, which does not publish its
# heads: 16 is the number of L. The small ones are ours, for a laptop's processor.
PRESETS: dict[str, Preset] = {
    "igpt-s": Preset(24, 8, 512),
    "igpt-m": Preset(36, 8, 1024),
    "igpt-l": Preset(48, 16, 1536),
    "igpt-xl": Preset(60, 16, 3072),
    "igpt-nano": Preset(4, 2, 64),
    "igpt-micro": Preset(6, 4, 128),
    "igpt-mini": Preset(8, 8, 256),
}


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from and how they enter."""

    # Hugging Face id, local folder, .npy/.npz, or `digits`; of a stream also shards, by path or URL
    source: str = "digits"
    image_size: int = 8  # pictures are made image_size x image_size
    image_column: str | None = None  # None: the only column of pictures
    label_column: str | None = None  # None: the column of class labels, if any
    train_split: str = "train"
    validation_split: str | None = None  # None: the source's, else a seeded part of train
    validation_fraction: float = 0.1  # of train, when the source has no validation split
    split_seed: int | None = None  # that this part is drawn from; None: train.seed
    # How many pictures there were to train and to validate on; a run writes it, since of more or
    # fewer another part would be drawn, and other batches.
    split_pictures: int | None = None
    test_split: str = "test"
    augmentation: Augmentation = "none"
    # Pretrain on the source as a stream: never whole in memory or on the disk.
    streaming: bool = False
    shuffle_buffer: int = 10_000  # pictures of a stream that are shuffled together
    # Of a stream: read of its validation split, or else held out of its beginning.
    validation_pictures: int = 2_000

    def __post_init__(self) -> None:
        _at_least_one("data", self, "image_size", "shuffle_buffer", "validation_pictures")
        _require(
            0 < self.validation_fraction < 1,
            f"data.validation_fraction must lie between 0 and 1, got {self.validation_fraction}",
        )
        seed = self.split_seed
        _require(seed is None or seed >= 0, f"data.split_seed must not be negative, got {seed}")


@dataclass(frozen=True)
class PaletteConfig:
    """The colour clusters that pixels are reduced to (paper, section 3.2)."""

    colors: int = 512  # 9 bits a pixel, as in the paper
    path: str | None = None  # a .npy of clusters to use instead of fitting one

    def __post_init__(self) -> None:
        _require(2 <= self.colors <= 65535, f"palette.colors must be 2 to 65535: {self.colors}")


@dataclass(frozen=True)
class ModelChoice:
    """A preset, and any of its sizes changed; vocabulary and positions follow from the data."""

    preset: str = "igpt-nano"
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None

    def __post_init__(self) -> None:
        _require(
            self.preset in PRESETS,
            f"unknown model preset '{self.preset}', expected one of: {', '.join(PRESETS)}",
        )
        _at_least_one("model", self, "n_layer", "n_head", "n_embd")

    def resolve(self, vocab_size: int, n_positions: int, causal: bool) -> ModelConfig:
        preset = PRESETS[self.preset]
        return ModelConfig(
            n_layer=self.n_layer or preset.n_layer,  # None, as 0 was refused
            n_head=self.n_head or preset.n_head,
            n_embd=self.n_embd or preset.n_embd,
            vocab_size=vocab_size,
            n_positions=n_positions,
            causal=causal,
        )


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation (paper, section 3.4): Adam, linear warm-up, cosine to zero."""

    steps: int = 1000
    batch_size: int = 128  # pictures a step, over all processes and micro-batches
    # pictures a process takes in a forward pass; None: its whole share of the batch
    micro_batch_size: int | None = None
    lr: float = 3e-3  # peak
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up
    patience: int | None = None  # validations without a better one that end the run; None: never
    grad_clip: float | None = None  # largest norm of the gradient; None: no clipping
    precision: Precision = "auto"
    # Keep only what enters a block and compute the rest again on the way back: a third more work.
    activation_checkpointing: bool = False
    compile: bool = False  # torch.compile the training step: slower start, faster steps
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    checkpoint_every: int = 500
    wandb: bool = False  # also log to Weights & Biases, if it is installed

    def __post_init__(self) -> None:
        _at_least_one("train", self, "steps", "batch_size", "micro_batch_size", "patience")
        _at_least_one("train", self, "log_every", "eval_every", "checkpoint_every")
        finite = 0 < self.lr < math.inf
        _require(finite, f"train.lr must be positive and finite, got {self.lr}")
        _require(self.seed >= 0, f"train.seed must not be negative, got {self.seed}")
        betas_fit = all(0 <= beta < 1 for beta in self.betas)
        _require(betas_fit, f"train.betas must lie in [0, 1), got {self.betas}")
        clips = self.grad_clip is None or self.grad_clip > 0
        _require(clips, f"train.grad_clip must be positive, got {self.grad_clip}")
        _require(self.warmup_steps >= 0, f"train.warmup_steps is negative: {self.warmup_steps}")
        micro = self.micro_batch_size or self.batch_size
        _require(
            self.batch_size % micro == 0,
            f"train.batch_size ({self.batch_size}) must be a multiple of "
            f"train.micro_batch_size ({micro})",
        )


# What a fine-tuning is told unless the command line says otherwise: ours, for few labels and small
# models. The paper takes pretraining's batches and says neither a length nor a warm-up (3.4). The
# rate is a part of the pretraining's.
FINETUNING = TrainConfig(
    steps=2000,
    batch_size=64,
    warmup_steps=50,
    schedule="constant",
    patience=5,
    grad_clip=1.0,
    eval_every=100,
    checkpoint_every=100,
)


@dataclass(frozen=True)
class FinetuneConfig:
    """L_GEN + lambda L_CLF from a pretrained model (paper, sections 2.3 and 3.4)."""

    from_scratch: bool = False  # the same network with new weights, to compare with
    clf_weight: float = 1.0  # lambda
    gen_weight: float = 1.0  # 0: L_CLF alone
    freeze: int = 0  # first blocks, and the embeddings, that stay as they are
    layer_decay: float = 1.0  # each layer learns at this times the rate of the one above
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"  # balanced: each class counts the same
    labels_per_class: int | None = None  # None: all there are
    metric: Metric = "accuracy"  # of the best checkpoint

    def __post_init__(self) -> None:
        for name in ("clf_weight", "gen_weight", "freeze"):
            value = getattr(self, name)
            fits = 0 <= value < math.inf
            _require(fits, f"finetune.{name} must not be negative, and finite, got {value}")
        learns = self.clf_weight > 0 or self.gen_weight > 0
        _require(learns, "finetune.clf_weight and finetune.gen_weight are both 0: nothing to learn")
        _require(
            0 < self.layer_decay <= 1,
            f"finetune.layer_decay must be above 0 and at most 1, got {self.layer_decay}",
        )
        _require(
            0 <= self.label_smoothing < 1,
            f"finetune.label_smoothing must lie in [0, 1), got {self.label_smoothing}",
        )
        _at_least_one("finetune", self, "labels_per_class")


@dataclass(frozen=True)
class ParallelConfig:
    """How a run that torchrun started is divided: data x shard x tensor are its processes.

    Each copy of the model is trained on its part of every batch. shard=1 replicates the model on
    every process, data=1 holds one copy between all of them, and there is everything between. For
    more processes than pictures, `tensor` of them compute the same ones, each its part of the MLPs.
    """

    data: int | None = None  # copies of the model; None: what the processes make
    shard: int | None = 1  # processes that hold a copy between them; None: what data leaves
    tensor: int = 1  # processes that divide the MLPs' products
    timeout: int = 600  # seconds after which a process that does not answer ends the run

    def __post_init__(self) -> None:
        _at_least_one("parallel", self, "data", "shard", "tensor", "timeout")

    def mesh(self, processes: int) -> tuple[int, int, int]:
        """(data, shard, tensor) for so many processes; UserError when they do not make them up."""
        data, shard, groups = self.data, self.shard, max(1, processes // self.tensor)
        if shard is None:
            shard = groups // (data or 1)
        if data is None:
            data = groups // shard
        _require(
            data * shard * self.tensor == processes,
            f"parallel: data ({self.data}) x shard ({self.shard}) x tensor ({self.tensor}) are not "
            f"the {processes} process{'es' * (processes > 1)} that there are",
        )
        return data, shard, self.tensor

    def check_fit(self, shape: ModelConfig) -> None:
        """UserError when `tensor` processes cannot have as many of an MLP's hidden units each."""
        hidden = 4 * shape.n_embd
        complaint = f"must divide the {hidden} hidden units of an MLP, {self.tensor} does not"
        _require(hidden % self.tensor == 0, f"parallel.tensor {complaint}")


@dataclass(frozen=True)
class Recipe:
    """All that a run is told."""

    init_from: str | None = None  # a trained model to go on from: a run, a model folder, a Hub id
    data: DataConfig = field(default_factory=DataConfig)
    palette: PaletteConfig = field(default_factory=PaletteConfig)
    # The permutation pi of the pixels (paper, 2.1): raster, column, snake, hilbert or random:SEED.
    order: str = "raster"
    objective: Objective = "ar"
    mask_probability: float = ModelConfig.mask_probability  # BERT only
    model: ModelChoice = field(default_factory=ModelChoice)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    finetune: FinetuneConfig | None = None  # None: pretraining

    def __post_init__(self) -> None:
        self.model_config(1, 1)

    @property
    def split_seed(self) -> int:
        """What held-out pictures are drawn from."""
        return self.train.seed if self.data.split_seed is None else self.data.split_seed

    def model_config(self, vocab_size: int, n_positions: int) -> ModelConfig:
        """The model's shape, with what the data say: colours and pixels."""
        shape = self.model.resolve(vocab_size, n_positions, causal=self.objective == "ar")
        return replace(shape, mask_probability=self.mask_probability)
