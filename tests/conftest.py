"""Pictures and a small trained run that many tests share."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from igpt.config import Recipe, load_recipe
from igpt.pretrain import pretrain

torch.set_num_threads(2)

# Small enough for seconds, and with every moving part: float32, so that it repeats to the bit.
TINY = [
    "train.steps=12",
    "train.batch_size=8",
    "train.log_every=1",
    "train.eval_every=4",
    "train.checkpoint_every=4",
    "train.warmup_steps=4",
    "train.precision=float32",
    "model.n_layer=2",
    "model.n_embd=16",
]


def tiny_recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", [*TINY, *overrides])


def silent(_line: str) -> None:
    """A `say` that says nothing."""


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the digits; tests must not write into it."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    pretrain(tiny_recipe(), path, resume=False, say=silent)
    return path


def picture_bytes(seed: int, size: tuple[int, int] = (9, 7), image_format: str = "PNG") -> bytes:
    """An encoded picture of random colours, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()
