"""Bits a pixel of quantized pictures as PNG and lossless WebP, and of their colours' entropy.

python benchmarks/compressors.py RUN [--data D] [--split test]

The pictures are those of `igpt eval RUN`, in the palette of the run: what the compressors are given
is exactly what the model is scored on. All bytes of a file count.
"""

from __future__ import annotations

import argparse
import io
import sys
from typing import Any

import numpy as np
from PIL import Image

from igpt.cli.arguments import add_data, add_images, add_run, open_pictures
from igpt.pipeline import load
from igpt.run_data import load_named

FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {"format": "PNG", "optimize": True},
    "lossless WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
}


def file_bits(pixels: np.ndarray, options: dict[str, Any]) -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return 8 * buffer.tell()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run(parser)
    add_images(parser)
    add_data(parser)
    args = parser.parse_args()
    pipeline = load(args.run)
    images = load_named(open_pictures(args), pipeline).images
    quantized = pipeline.quantize(images)
    print(f"{len(images)} pictures, {pipeline.palette.n_colors} colours", file=sys.stderr)
    counts = np.bincount(pipeline.tokens(images).numpy().ravel())
    share = counts[counts > 0] / counts.sum()
    print(f"{-(share * np.log2(share)).sum():.3f}  entropy of the colours")
    n_pixels = quantized[..., 0].size
    for name, options in FORMATS.items():
        print(f"{sum(file_bits(q, options) for q in quantized) / n_pixels:.3f}  {name}")


if __name__ == "__main__":
    main()
