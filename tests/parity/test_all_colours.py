"""All of the 16.7 million colours, by our palette and by the image processor of transformers.

Theirs computes |a|² - 2ab + |b|² in float32, which cannot tell clusters whose distances differ by
its rounding; ours is exact. For the paper's 512 colours, a few minutes:

    python tests/parity/test_all_colours.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

from igpt.palette import Palette

COLOURS = 2**24
ROUNDING = 2e-6  # of a squared distance up to 12 in float32, twice


@dataclass(frozen=True)
class Comparison:
    """How many colours two encoders see differently, and by how much ours is the nearer."""

    different: int
    gaps: tuple[float, float]  # of squared distance, theirs less ours: smallest and largest


def plane(red: int) -> np.ndarray:
    """All colours of one red: uint8 [256, 256, 3]."""
    green, blue = np.mgrid[:256, :256]
    return np.stack((np.full_like(green, red), green, blue), axis=-1).astype(np.uint8)


def compare(n_colors: int, reds: Sequence[int]) -> Comparison:
    clusters = np.random.default_rng(0).uniform(-1, 1, (n_colors, 3)).astype(np.float32)
    processor = ImageGPTImageProcessorPil(clusters=clusters, do_resize=False)
    palette, different, gaps = Palette(clusters), 0, [0.0]
    for red in reds:
        colours = plane(red)
        theirs = np.asarray(processor(colours, return_tensors="np")["input_ids"]).reshape(-1)
        ours = palette.encode(colours[None])[0]
        other = np.flatnonzero(theirs != ours)
        different += len(other)
        exact = colours.reshape(-1, 3)[other].astype(np.float64) / 127.5 - 1
        far, near = (
            np.square(exact - palette.clusters[chosen[other]].astype(np.float64)).sum(axis=1)
            for chosen in (theirs, ours)
        )
        gaps += (far - near).tolist()
    return Comparison(different, (min(gaps), max(gaps)))


@pytest.mark.parametrize(("n_colors", "reds"), [(16, range(256)), (512, range(0, 256, 37))])
def test_they_agree_but_for_ties_within_the_rounding_of_float32(n_colors: int, reds: range) -> None:
    found = compare(n_colors, reds)
    assert found.gaps[0] >= 0, "theirs was nearer"
    assert found.gaps[1] < ROUNDING
    assert found.different < 1e-4 * len(reds) * COLOURS / 256


if __name__ == "__main__":
    print(compare(512, range(256)))
