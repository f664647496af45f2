"""How fast a palette encodes, and how long it takes to fit.

    python benchmarks/palette_speed.py [--data FOLDER ...]      (two minutes)
    python benchmarks/palette_speed.py --pictures 500           (seconds)

Pictures/s beside the image processor of `transformers`, 512 colours, for noise, photo-like and grey
pictures of 32x32. Cold: the first pass of a new palette, which computes its table on the way. Then
the seconds that 512 colours take on 50,000 photo-like pictures (aim: under 30), and on those of
each --data at that size, repeated to as many. Writes palette.json to --out.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from contest import Contender, contest
from machine import machine
from peers import encode_ours, encode_theirs, palette
from pictures import KINDS, SIZE, photo_like

from igpt.data.decode import decode_all
from igpt.data.sources import open_source
from igpt.disk import write_json
from igpt.order import Encoded
from igpt.palette import Palette
from igpt.types import Pixels

N_COLORS = 512
ENCODED, FITTED = (50, 20_000), 50_000  # pictures: theirs and ours in a unit; fitted on


def encoders(kind: str, theirs: int, ours: int) -> dict[str, Contender]:
    """Both; so many pictures are in a unit of each."""
    return {
        "transformers": Contender(encode_theirs, (theirs, kind)),
        "igpt": Contender(encode_ours, (ours, kind), ours / theirs),
    }


def cold_rate(images: Pixels) -> float:
    """Pictures/s of a palette's first pass."""
    new = palette(N_COLORS)
    start = time.perf_counter()
    new.encode(images)
    return len(images) / (time.perf_counter() - start)


def fit(images: Pixels) -> dict[str, float]:
    """Seconds that a palette takes, and how good it is."""
    start = time.perf_counter()
    fitted = Palette.fit(images, N_COLORS)
    seconds = time.perf_counter() - start
    return {"pictures": len(images), "seconds": seconds, "psnr": fitted.psnr(images)}


def repeated(source: str, n: int) -> Pixels:
    """`n` training pictures of a source, from the first again after the last."""
    images = decode_all(open_source(source).split("train"), SIZE).images
    assert not isinstance(images, Encoded), f"{source} holds tokens"
    return images[np.arange(n) % len(images)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", default=[], help="sources to fit a palette on as well")
    parser.add_argument("--pictures", type=int, default=FITTED, help="to fit on (50,000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/palette"))
    args = parser.parse_args()
    theirs, ours = ENCODED[0], min(ENCODED[1], args.pictures)
    print("| pictures | transformers, pictures/s (range) | igpt (range) | ratio | igpt, cold |\n"
          "|---|---|---|---|---|", flush=True)  # fmt: skip
    encoded = {}
    for kind, make in KINDS.items():
        results = contest(encoders(kind, theirs, ours), theirs, args.rounds)
        cold = cold_rate(make(ours))
        rates = [f"{r.median:,.0f} ({r.lowest:,.0f} to {r.highest:,.0f})" for r in results.values()]
        ratio = results["igpt"].median / results["transformers"].median
        print(f"| {kind} | {' | '.join(rates)} | {ratio:,.0f} | {cold:,.0f} |", flush=True)
        encoded[kind] = {name: asdict(result) for name, result in results.items()} | {"cold": cold}
    print(f"\n| pictures | s to fit {N_COLORS} colours | PSNR |\n|---|---|---|", flush=True)
    fits = {}
    for name in ("photo-like", *args.data):
        images = repeated(name, args.pictures) if name in args.data else photo_like(args.pictures)
        fits[name] = fit(images)
        print(f"| {args.pictures:,}, {name} | {fits[name]['seconds']:.1f} "
              f"| {fits[name]['psnr']:.2f} dB |", flush=True)  # fmt: skip
    write_json(args.out / "palette.json", {"machine": machine(), "encoded": encoded, "fits": fits})


if __name__ == "__main__":
    main()
