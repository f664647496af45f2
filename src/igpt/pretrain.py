"""From a recipe to a trained run: pictures, palette, tokens, model, loop."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from igpt.checkpoint import RunDirectory
from igpt.config import Recipe, Say, TrainConfig, UserError
from igpt.data.augment import imagenet_crop
from igpt.data.decode import (
    Decoded,
    decode_all,
    encode_all,
    evaluation_transform,
    imagenet_centre,
    warn_skipped,
)
from igpt.data.loader import Loader, PictureLoader, TokenLoader
from igpt.data.pictures import Pictures
from igpt.data.shards import next_pictures, open_streams
from igpt.data.sources import open_data
from igpt.data.splits import count_split_pictures, training_splits
from igpt.data.stream import StreamLoader
from igpt.device import compute_dtype, default_device
from igpt.evaluate import picture_nats
from igpt.folder import StoredModel, save_model
from igpt.model import ImageGPT
from igpt.objectives import generative_objective, require_likelihood
from igpt.order import Codec, Encoded
from igpt.palette import Palette
from igpt.parallel.processes import (
    dp_rank,
    dp_size,
    from_first,
    name_skipped,
    require_same,
    share_of_batch,
    together,
)
from igpt.rng import numpy_rng
from igpt.run import new_model, open_run, require_same_split, train_run, with_split_pictures
from igpt.train import Outcome, Trainer, Validation
from igpt.types import Pixels
from igpt.warm_start import (
    RATE_FACTOR,
    inherited_recipe,
    open_start,
    shape_from,
    warn_of_other_parts,
)

# Pictures that a palette is fitted on when they do not all fit in memory.
PALETTE_SAMPLE = 20_000


@dataclass(frozen=True)
class TrainingData:
    """The data of a run as the loop takes it."""

    loader: Loader
    validation: torch.Tensor  # uint16 [N, T] in the model's order
    codec: Codec
    skipped: list[str]  # unreadable pictures, by name
    split_pictures: int | None = None  # to train and to validate on; None of a stream


def training_data(
    recipe: Recipe, palette: Palette | None, say: Say, resume: bool = False
) -> TrainingData:
    """Open and decode the pictures, fit the palette unless there is one, encode.

    Raises UserError when a run to resume began with more or fewer pictures.
    """
    data = recipe.data
    if data.streaming:
        return _data_of_stream(recipe, palette, say)
    with together():
        source = open_data(data)
        warn_of_other_parts(recipe, source)
        count = count_split_pictures(source, data)
        require_same_split(recipe, count, resume)
        train, held_out = training_splits(source, data, recipe.split_seed)
    make = _data_of_crops if data.augmentation == "imagenet" else _data_of_pictures
    return replace(make(recipe, train, held_out, palette, say), split_pictures=count)


def _data_of_pictures(
    recipe: Recipe, train: Pictures, held_out: Pictures, palette: Palette | None, say: Say
) -> TrainingData:
    """All decoded and encoded once: part after part where the palette is known already."""
    data = recipe.data
    codec = None if palette is None else Codec(palette, recipe.order, data.image_size)

    def read(pictures: Pictures) -> Decoded:
        return encode_all(pictures, codec) if codec else decode_all(pictures, data.image_size)

    with together():
        decoded, held_decoded = read(train), read(held_out)
    counts = f"{len(decoded.images):,} pictures to train on, {len(held_decoded.images):,} held out"
    say(f"{data.source}: {counts}")
    if codec is None:
        palette = _settle_palette(recipe, lambda: decoded.images, say)
        codec = Codec(palette, recipe.order, data.image_size)
    loader = TokenLoader(
        codec.raster_tokens(decoded.images),
        None,
        codec,
        recipe.train.batch_size,
        recipe.train.seed,
        data.augmentation,
    )
    require_same("training pictures", _fingerprint(loader.tokens))
    validation = _encode_held_out(codec, held_decoded.images)
    return TrainingData(loader, validation, codec, decoded.skipped + held_decoded.skipped)


def _data_of_crops(
    recipe: Recipe, train: Pictures, held_out: Pictures, palette: Palette | None, say: Say
) -> TrainingData:
    """Random crops change the colours, so the pictures are decoded anew at every step."""
    data, seed = recipe.data, recipe.train.seed
    train.require_croppable()
    say(f"{data.source}: {len(train):,} pictures to train on, {len(held_out):,} held out")

    def sample() -> Pixels | Encoded:
        count = min(len(train), PALETTE_SAMPLE)
        chosen = numpy_rng(seed, "palette").choice(len(train), count, replace=False)
        return decode_all(train.select(np.sort(chosen)), data.image_size, imagenet_centre).images

    palette = palette or _settle_palette(recipe, sample, say)
    codec = Codec(palette, recipe.order, data.image_size)
    with together():
        held_decoded = decode_all(held_out, data.image_size, imagenet_centre)
    loader = PictureLoader(train, codec, recipe.train.batch_size, seed, imagenet_crop)
    require_same("training pictures", len(train))
    validation = _encode_held_out(codec, held_decoded.images)
    return TrainingData(loader, validation, codec, held_decoded.skipped)


def _data_of_stream(recipe: Recipe, palette: Palette | None, say: Say) -> TrainingData:
    """A stream is read while training; its first pictures are read here, for what comes before."""
    data = recipe.data
    transform = evaluation_transform(data.augmentation)
    with together():
        train, validation = open_streams(data)
        first = train.read()
        held_out = next_pictures(
            validation.read() if validation else first,
            data.validation_pictures,
            data.image_size,
            transform,
        )
        if not held_out.digests:
            name = (validation or train).name
            raise UserError("; ".join([f"{name}: no picture can be read", *held_out.skipped[:1]]))
        if validation is None and len(held_out.digests) < data.validation_pictures:
            raise UserError(_all_held_out(train.name))
    warn_skipped(held_out.skipped)
    say(f"{len(held_out.digests):,} pictures held out; those to train on are read as a stream")

    def sample() -> Pixels:
        if recipe.palette.path is not None:  # then it is only looked at how well it fits
            return held_out.images
        images = next_pictures(first, PALETTE_SAMPLE, data.image_size, transform).images
        if not len(images):
            raise UserError(_all_held_out(train.name))
        return images

    palette = palette or _settle_palette(recipe, sample, say)
    codec = Codec(palette, recipe.order, data.image_size)
    loader = StreamLoader(
        train.share(dp_rank(), dp_size()),
        frozenset() if validation else frozenset(held_out.digests),
        codec,
        data.shuffle_buffer,
        recipe.train.seed,
        data.augmentation,
    )
    loader.skipped.update(held_out.skipped)  # they were named
    return TrainingData(loader, _encode_held_out(codec, held_out.images), codec, held_out.skipped)


def _all_held_out(name: str) -> str:
    return f"{name} has only pictures that are held out: try a smaller data.validation_pictures"


def _encode_held_out(codec: Codec, images: Pixels | Encoded) -> torch.Tensor:
    """Tokens uint16 [N, T] in the model's order, the same for every process."""
    tokens = codec.encode(images)
    require_same("validation pictures", _fingerprint(tokens))
    return torch.from_numpy(tokens)


def _fingerprint(tokens: npt.NDArray[np.generic]) -> int:
    return zlib.crc32(np.ascontiguousarray(tokens).data)


def _settle_palette(recipe: Recipe, images: Callable[[], Pixels | Encoded], say: Say) -> Palette:
    """`make_palette` of the first process for all: two machines need not fit the same bits."""
    made: list[Palette] = []

    def clusters() -> list[list[float]]:
        made.append(make_palette(recipe, images(), say))
        return made[0].clusters.tolist()

    shared = from_first(clusters)
    return made[0] if made else Palette(np.array(shared, dtype=np.float32))


def make_palette(recipe: Recipe, images: Pixels | Encoded, say: Say) -> Palette:
    """The recipe's palette: read from its file, or fitted on the training pictures [N, H, W, 3].

    Raises UserError for encoded pictures without a file: only their own palette knows the colours.
    """
    if isinstance(images, Encoded):
        if recipe.palette.path is None:
            raise UserError("the data are tokens: give the palette they were made with (--palette)")
        return Palette.load(recipe.palette.path)
    if recipe.palette.path is not None:
        palette = Palette.load(recipe.palette.path)
    else:
        palette = Palette.fit(images, recipe.palette.colors, recipe.train.seed)
    say(
        f"palette of {palette.n_colors} colours, {palette.psnr(images):.1f} dB PSNR on the pictures"
    )
    return palette


@dataclass(frozen=True)
class Pretrained:
    """How a run ended, and which pictures it could not read."""

    outcome: Outcome
    skipped: list[str]  # by name, sorted


def pretrain_recipe(start: Path, source: str | None = None) -> Recipe:
    """The recipe of a pretraining that goes on from `start`, before what the user changes in it.

    It is trained as it was, at a tenth of the rate and with batches that it has not seen in that
    order; a fine-tuned model, or one without a recipe, by the defaults. The rest is
    `inherited_recipe`'s, and so are the errors.
    """
    theirs = inherited_recipe(start, source)
    train = theirs.train
    if theirs.finetune is not None:
        train = TrainConfig(compile=train.compile, precision=train.precision, seed=train.seed)
    again = replace(train, lr=train.lr * RATE_FACTOR, seed=train.seed + 1)
    return replace(theirs, train=again, finetune=None)


def pretrain(recipe: Recipe | None, out: Path, *, resume: bool, say: Say) -> Pretrained:
    """Train `recipe` into the run directory `out`, or go on with the run that is there.

    `recipe` may be None to resume: the run's own is used. Raises UserError for a directory that
    holds a run already, a recipe that differs from the run's, and all that can be wrong with data.
    """
    with open_run(recipe, out, resume, "pretrain") as (recipe, run, resume):
        return _pretrain(recipe, run, resume, say)


def _pretrain(recipe: Recipe, run: RunDirectory, resume: bool, say: Say) -> Pretrained:
    with together():
        start = None if recipe.init_from is None else open_start(recipe)
        if start is not None:
            require_likelihood(start.config)
    begun = run.palette() if resume else None
    data = training_data(recipe, start.codec.palette if start else begun, say, resume)
    recipe = with_split_pictures(recipe, data.split_pictures)
    codec, config = data.codec, recipe.train
    model = _first_model(recipe, codec, start)
    held_out = generative_objective(model.config, config.seed, stream="evaluate")
    dtype = compute_dtype(config.precision, default_device())
    rows = len(share_of_batch(config.batch_size))
    at_once = min(config.micro_batch_size or rows, rows)  # as many as in training

    def validate(check: Callable[[], None]) -> Validation:
        nats = picture_nats(
            model,
            held_out,
            data.validation,
            at_once,
            dtype,
            mask_batch=config.batch_size,
            check=check,
        )
        mean = float(nats.double().mean())
        return Validation({"val_loss": mean}, mean)

    trainer = Trainer(
        model,
        generative_objective(model.config, config.seed, stream="train"),
        data.loader,
        config,
        run,
        validate,
        lambda: save_model(run.path, model, codec),
    )
    with closing(data.loader):
        outcome = train_run(trainer, recipe, codec, resume=resume, say=say)
    return Pretrained(outcome, name_skipped({*data.skipped, *data.loader.skipped}, say))


def _first_model(recipe: Recipe, codec: Codec, start: StoredModel | None) -> ImageGPT:
    """A new model of the codec's tokens, or the one that the run goes on from."""
    if start is None:
        return new_model(recipe.model_config(codec.vocab_size, codec.n_tokens), recipe)
    model = new_model(shape_from(start, recipe), recipe)
    start.copy_into(model)
    return model
