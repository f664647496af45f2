"""Likelihood as a signal: how surprising pictures are, and whether that tells two sets apart.

Raw likelihood is no measure of belonging. A smooth picture is easy to predict pixel by pixel
whatever it shows, so a model often finds foreign pictures likelier than its own kind. Serrà et al.
(Input complexity and out-of-distribution detection with likelihood-based generative models, ICLR
2020) subtract what a general compressor needs for the same picture:

    S = bits/pixel of the model - bits/pixel of the compressor

What is left is how much worse the model does than one that knows nothing of its training set.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from igpt.order import Encoded
from igpt.pipeline import Pipeline
from igpt.types import Floats, Pixels

CHUNK = 1024  # pictures whose pixels' values are in memory at once
# Lossless compressors; the one that does best on a picture counts, as in the paper. WebP's slowest
# method takes 40 times longer than its usual one and saves 1 %.
COMPRESSORS: tuple[dict[str, Any], ...] = (
    {"format": "PNG", "optimize": True},
    {"format": "WEBP", "lossless": True, "quality": 100, "method": 4},
)


@dataclass(frozen=True)
class Scores:
    """How surprising the pictures of a set are to a model."""

    names: list[str]  # N
    nats_per_pixel: Floats  # [N]
    compressed_bits_per_pixel: Floats  # [N], of the same pictures in the palette's colours

    @property
    def bits_per_pixel(self) -> Floats:
        return self.nats_per_pixel / math.log(2)

    @property
    def corrected(self) -> Floats:
        """Serrà's S, bits/pixel, [N]: high where the model does worse than a compressor."""
        return self.bits_per_pixel - self.compressed_bits_per_pixel

    @property
    def ranking(self) -> npt.NDArray[np.intp]:
        """Indices [N] of the pictures from the likeliest to the least likely."""
        return np.argsort(self.nats_per_pixel, kind="stable")


@dataclass(frozen=True)
class Signal:
    """A number for every picture of two sets, meant to be higher for those outside."""

    inside: Floats  # [N]
    outside: Floats  # [M]

    @property
    def auroc(self) -> float:
        """Chance that a picture outside has the higher number of a pair: 1 is perfect, 0.5 none.

        Below 0.5 the signal is upside down: the foreign pictures look more familiar.
        """
        from sklearn.metrics import roc_auc_score

        is_outside = np.repeat([0, 1], [len(self.inside), len(self.outside)])
        return float(roc_auc_score(is_outside, np.concatenate([self.inside, self.outside])))

    @property
    def standard_error(self) -> float | None:
        """Of `auroc`, as the pictures are a sample of each kind; None for a single one of a kind.

        DeLong et al., Comparing the areas under two or more correlated receiver operating
        characteristic curves, Biometrics 1988.
        """
        n, m = len(self.inside), len(self.outside)
        if min(n, m) < 2:
            return None
        below_inside = _part_below(self.inside, self.outside)
        below_outside = _part_below(self.outside, self.inside)
        return math.sqrt(below_inside.var(ddof=1) / n + below_outside.var(ddof=1) / m)


def _part_below(values: Floats, others: Floats) -> Floats:
    """For each of the values [N], the part of `others` [M] that is below it; of ties the half."""
    ordered = np.sort(others)
    places = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return np.asarray(sum(places) / (2 * len(others)))


def score(
    pipeline: Pipeline,
    images: Pixels | Encoded,
    names: list[str],
    *,
    precision: str = "float32",
    check: Callable[[], None] | None = None,
) -> Scores:
    """Score pictures [N, H, W, 3] of the model's size, or encoded ones, called `names`.

    They are taken as they are: what made them of that size did it as for the run's own. A pixel's
    nats are those of `Pipeline.surprise`, so that a BERT model's are from every pixel and do not
    depend on which other pictures are in the set. They are not kept. `precision` and `check` are as
    there.
    """
    nats, compressed = [], []
    for start in range(0, len(images), CHUNK):
        part = Encoded(pipeline.codec.raster_tokens(images[start : start + CHUNK]))
        surprise = pipeline.surprise(part, precision=precision, check=check)  # [B, H, W]
        nats.append(surprise.mean(axis=(1, 2), dtype=np.float64))
        compressed.append(compressed_bits(pipeline.quantize(part)))
    return Scores(names, np.concatenate(nats), np.concatenate(compressed))


def compressed_bits(images: Pixels) -> Floats:
    """Bits/pixel [N] of pictures [N, H, W, 3] in the smaller of PNG and lossless WebP.

    The files' headers count: in 32x32 pixels they are 0.2 bits (WebP) and 0.5 bits (PNG) of each.
    """
    pixels = images.shape[1] * images.shape[2]
    with ThreadPoolExecutor() as pool:
        return 8 * np.array(list(pool.map(_compressed_bytes, images))) / pixels


def _compressed_bytes(pixels: Pixels) -> int:
    """Size of the smallest file that holds the picture [H, W, 3]."""
    grey = bool((pixels == pixels[..., :1]).all())
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    sizes = []
    for options in COMPRESSORS:
        file = io.BytesIO()
        image.save(file, **options)
        sizes.append(file.tell())
    return min(sizes)


def out_of_distribution(inside: Scores, outside: Scores) -> tuple[Signal, Signal]:
    """The raw signal, bits/pixel of the model, and the one corrected for complexity."""
    return (
        Signal(inside.bits_per_pixel, outside.bits_per_pixel),
        Signal(inside.corrected, outside.corrected),
    )
