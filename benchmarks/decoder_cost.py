"""What a decoder's precision costs: nats/pixel of test pictures, read a pixel at a time.

    python benchmarks/decoder_cost.py RUN [--pictures 64]

Every decoder is given the same pixels and scored on its prediction of the next one; float32 is what
`igpt eval` computes in one pass.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from igpt.cli.arguments import limited
from igpt.decoders import Decoder, new_decoder
from igpt.objectives import token_nats
from igpt.pipeline import load
from igpt.run_data import RunData, load_named


@torch.inference_mode()
def nats_per_pixel(decoder: Decoder, tokens: Tensor) -> float:
    """The mean over pictures `tokens` [B, T] and their pixels."""
    logits = [decoder.prefill(tokens[:, :0])]
    decoder.select(torch.arange(len(tokens)))
    logits += [decoder.step(tokens[:, i]) for i in range(tokens.shape[1] - 1)]
    return token_nats(torch.stack(logits, dim=1).float(), tokens).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", type=int, default=64)
    args = parser.parse_args()
    pipeline = load(args.run)
    first = limited(RunData.of(args.run).pictures(), args.pictures)
    tokens = pipeline.tokens(load_named(first, pipeline).images)
    for precision in ("float32", "bfloat16", "int8"):
        decoder = new_decoder(pipeline.model, precision)
        nats = nats_per_pixel(decoder, tokens)
        print(f"{type(decoder).__name__}, {precision}: {nats:.5f} nats/pixel")


if __name__ == "__main__":
    main()
