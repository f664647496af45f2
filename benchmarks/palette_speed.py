"""How fast a palette encodes, and how long it takes to fit.

Prints millions of pixels a second on one core, cold (the table is filled on the way) and warm (the
best of a few passes), for three kinds of pictures: noise, where every look-up misses the cache;
photo-like, which is what there is; grey, which touches 16 cells. Then the seconds that the paper's
512 colours take on 50,000 photo-like pictures of 32x32. All pictures are synthetic and seeded.

    python benchmarks/palette_speed.py
"""

from __future__ import annotations

import os
import time

import numpy as np

from igpt.palette import Palette, Pixels
from igpt.rng import numpy_rng

SIZE, N_COLORS, PASSES = 32, 512, 5
N_ENCODED, N_FITTED = 10_000, 50_000  # pictures


def noise(n: int) -> Pixels:
    rng = numpy_rng(0, "noise")
    return rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def photo_like(n: int) -> Pixels:
    """Between four corner colours of its own, each picture blends smoothly; then some noise."""
    rng = numpy_rng(0, "photo")
    corners = rng.uniform(0, 255, (n, 4, 3)).astype(np.float32)
    x = np.linspace(0, 1, SIZE, dtype=np.float32)
    right, down = x[None, :], x[:, None]
    weights = np.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down,
                        right * down], -1)  # [S, S, 4]  # fmt: skip
    pictures = weights @ corners[:, None]  # [n, S, S, 3]
    pictures += rng.standard_normal(pictures.shape, dtype=np.float32) * 8
    return pictures.clip(0, 255).astype(np.uint8)


def grey(n: int) -> Pixels:
    rng = numpy_rng(0, "grey")
    return rng.integers(0, 256, (n, SIZE, SIZE, 1), dtype=np.uint8).repeat(3, axis=-1)


def seconds_to_encode(palette: Palette, images: Pixels) -> float:
    start = time.perf_counter()
    palette.encode(images)
    return time.perf_counter() - start


def main() -> None:
    start = time.perf_counter()
    pictures = photo_like(N_FITTED)
    print(f"made {N_FITTED:,} photo-like pictures in {time.perf_counter() - start:.1f} s")

    start = time.perf_counter()
    palette = Palette.fit(pictures, N_COLORS)
    seconds = time.perf_counter() - start
    print(f"fit {palette.n_colors} colours: {seconds:.1f} s "
          f"(load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores), "
          f"psnr {palette.psnr(pictures):.2f} dB")  # fmt: skip

    for name, images in (
        ("noise", noise(N_ENCODED)),
        ("photo-like", pictures[:N_ENCODED]),
        ("grey", grey(N_ENCODED)),
    ):
        fresh = Palette(palette.clusters)  # an empty table
        megapixels = images.size / 3e6
        cold = megapixels / seconds_to_encode(fresh, images)
        warm = megapixels / min(seconds_to_encode(fresh, images) for _ in range(PASSES))
        print(f"encode {name:<10}  cold {cold:7.1f}  warm {warm:7.1f}  Mpixel/s")


if __name__ == "__main__":
    main()
