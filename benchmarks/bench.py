"""igpt beside `transformers` on the same weights and inputs, and beside the machine's limits.

    make bench                       (a quarter of an hour)
    make bench ARGS=--quick          (two minutes: fewer rows, contenders and rounds)

Prints a table for each kind of work, and writes bench.json and bench.png to --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from contest import Contender, Result, contest
from machine import ON_GPU, machine
from matplotlib.figure import Figure
from palette_speed import ENCODED, N_COLORS, encoders
from peers import (
    IGPT_S,
    OURS,
    SMALL,
    STREAMED,
    Work,
    at_length,
    attend_causally,
    attention_gflops,
    complete_ours,
    features_ours,
    features_theirs,
    matrix_products,
    memory_stream,
    needed_flops,
    product_flops,
    sample_ours,
    sample_theirs,
    score_ours,
    score_theirs,
    train_ours,
    train_theirs,
)
from pictures import SIZE
from start_up import start_up_apart
from start_up import table as start_up_table

from igpt.config import ModelConfig
from igpt.kernels.decode import backends
from igpt.plan import BYTES, cache_bytes, parameters, weight_bytes

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
BASE, BASE_16 = "transformers, float32", "transformers, bfloat16"
LIMIT = "the machine's limit"
ASIDE = ("plain PyTorch", "igpt, float32", "igpt, not compiled")  # that --quick leaves out
GIVEN, STEPS = 512, 8  # positions in the cache, and steps of a unit
HEADS = (4, 8, 1024, 64)  # pictures, heads, tokens, width: a layer of iGPT-S
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One kind of work."""

    title: str
    unit: str  # of the rates, a second
    amount: float  # of that unit in one unit of work
    contenders: dict[str, Contender]
    limit: Contender | None = None  # the machine's, measured in the same turns
    int8_share: float = 1  # of the bytes that a step reads in bfloat16, in 8 bits
    needs: str = ""  # what must be computed or read, of which the limit is made
    quick: bool = False  # also part of --quick


def product_limit(config: ModelConfig, batch: int, flops: float) -> Contender:
    """The products of a training step alone: the rate at which units of `flops` are done."""
    return Contender(matrix_products, (config, batch), product_flops(config, batch) / flops)


def per_picture(flops: float) -> str:
    return f"{flops / 1e9:.3g} GFLOP a picture"


def theirs_in_each_type(make: Callable[..., Work], *args: object) -> dict[str, Contender]:
    """`transformers` in float32 and, where the processor has it (elsewhere it crawls), bfloat16."""
    contenders = {BASE: Contender(make, (*args, FLOAT32))}
    if OURS == BFLOAT16:
        contenders[BASE_16] = Contender(make, (*args, BFLOAT16))
    return contenders


def on_processors(contenders: dict[str, Contender]) -> dict[str, Contender]:
    """What is there on processors only: for a GPU there are no kernels of ours to go without."""
    return {} if ON_GPU else contenders


def training(title: str, config: ModelConfig, batch: int, quick: bool = False) -> Row:
    contenders = {
        **theirs_in_each_type(train_theirs, config, batch),
        **on_processors({"plain PyTorch": Contender(train_ours, (config, batch, False, False))}),
        "igpt, not compiled": Contender(train_ours, (config, batch, True, False)),
        "igpt": Contender(train_ours, (config, batch, True, True)),
    }
    needed = needed_flops(config)
    limit = product_limit(config, batch, batch * needed)
    title = f"training step, {title}, batch {batch}"
    needs = per_picture(needed)
    return Row(title, "pictures", batch, contenders, limit, needs=needs, quick=quick)


def sampling(batch: int, quick: bool = False) -> Row:
    args = (IGPT_S, batch, GIVEN, STEPS)
    contenders = {
        **theirs_in_each_type(sample_theirs, *args),
        **on_processors({"plain PyTorch": Contender(sample_ours, (*args, "auto", False))}),
        "igpt, float32": Contender(sample_ours, (*args, "float32")),
        "igpt": Contender(sample_ours, (*args, "bfloat16")),
        **on_processors({"igpt, int8": Contender(sample_ours, (*args, "int8"))}),
    }
    read, read_int8, flops = step_needs(batch)
    return Row(
        f"sampling, iGPT-S, batch {batch}, from pixel {GIVEN}",
        "pixels",
        batch * STEPS,
        contenders,
        Contender(memory_stream, (), STREAMED / (STEPS * read)),
        read_int8 / read,
        f"{flops / 1e9:.2g} GFLOP and {read / 1e6:.0f} MB a step in bfloat16"
        + ("" if ON_GPU else f", {read_int8 / 1e6:.0f} MB in 8 bits"),
        quick,
    )


def palette(kind: str) -> Row:
    moved = SIZE * SIZE * (3 + 2)  # bytes: RGB is read, tokens are written
    return Row(
        f"palette, {N_COLORS} colours, {SIZE}x{SIZE} pictures, {kind}",
        "pictures",
        ENCODED[0],
        encoders(kind, *ENCODED),
        Contender(memory_stream, (), STREAMED / (ENCODED[0] * moved)),
        needs=f"{moved / 1024:.0f} KiB read and written a picture",
    )


def step_needs(batch: int) -> tuple[float, float, float]:
    """Bytes that a step of iGPT-S must read, in bfloat16 and in 8 bits, and its FLOPs.

    It reads all weights but the embeddings, of which it looks up one each, and the cache as far as
    it is filled, which stays in bfloat16 on some backends. Each weight is multiplied and added for
    each picture, each number of the cache once.
    """
    filled = (GIVEN + STEPS / 2) / IGPT_S.n_positions
    counts = parameters(IGPT_S)
    embeddings = (counts["token_embedding"] + counts["positions"]) * BYTES["bfloat16"]
    weights = weight_bytes(IGPT_S, "bfloat16") - embeddings
    cache = batch * filled * cache_bytes(IGPT_S, "bfloat16")
    fastest = backends()[:1]
    packed = not ON_GPU and any(b.cache_types[torch.int8] == torch.int8 for b in fastest)
    flops = (batch * weights + cache) * 2 / BYTES["bfloat16"]
    return weights + cache, weights / 2 + (cache / 2 if packed else cache), flops


def rows() -> list[Row]:
    more = 4 if ON_GPU else 1  # times as many pictures, of which a GPU computes more side by side
    batch, scored = 8 * more, 4096 if ON_GPU else 8  # side by side, and in all
    needed = needed_flops(SMALL) / 3
    forward = product_limit(SMALL, batch, scored * needed)
    attention = attention_gflops(HEADS)
    half = at_length(IGPT_S, GIVEN)
    for_half = needed_flops(half) / 3
    return [
        Row(
            "causal attention forward, 4x8 heads, 1,024 tokens, width 64",
            "GFLOP",
            attention,
            {
                "scaled_dot_product_attention": Contender(attend_causally, (HEADS, False)),
                "igpt": Contender(attend_causally, (HEADS, True)),
            },
            product_limit(replace(IGPT_S, n_layer=1), 1, 1e9 * attention),
            needs=f"{attention:.2g} GFLOP a pass",
        ),
        training("L=8 d=128, 1,024 tokens", SMALL, 8 * more, quick=True),
        training("iGPT-S, 1,024 tokens", IGPT_S, 2 * more),
        training("L=8 d=128, 2,304 tokens", at_length(SMALL, 48 * 48), 2 * more),
        training("L=8 d=128, 4,096 tokens", at_length(SMALL, 64 * 64), more),
        sampling(1),
        sampling(8, quick=True),
        sampling(32),
        *([sampling(128)] if ON_GPU else []),
        Row(
            "completion, 8 variants of half a picture, until the first new pixel, iGPT-S",
            "pictures",
            8,
            {
                "pixel by pixel": Contender(complete_ours, (IGPT_S, 8, False)),
                "igpt": Contender(complete_ours, (IGPT_S, 8, True)),
            },
            product_limit(half, 1, for_half),
            needs=f"{for_half / 1e9:.3g} GFLOP for the half",
        ),
        Row(
            f"scoring, L=8 d=128, 1,024 tokens, batch {batch}",
            "pictures",
            scored,
            {
                BASE: Contender(score_theirs, (SMALL, scored, batch)),
                "igpt, float32": Contender(score_ours, (SMALL, scored, batch, FLOAT32)),
                "igpt": Contender(score_ours, (SMALL, scored, batch, OURS)),
            },
            forward,
            needs=per_picture(needed),
        ),
        Row(
            f"features of all layers, L=8 d=128, 1,024 tokens, batch {batch}",
            "pictures",
            scored,
            {
                BASE: Contender(features_theirs, (SMALL, scored, batch)),
                "igpt, float32": Contender(features_ours, (SMALL, scored, FLOAT32)),
                "igpt": Contender(features_ours, (SMALL, scored, OURS)),
            },
            forward,
            needs=per_picture(needed),
        ),
        palette("noise"),
        palette("photo-like"),
    ]


def rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def table(row: Row, results: dict[str, Result]) -> str:
    """Markdown: rates, ratios to `transformers`, the part of the limit, if it is there, memory."""
    limit = results.get(LIMIT)
    of_limit = "of the limit | " if limit else ""
    bases = [next(iter(results)), *(name for name in (BASE_16,) if name in results)]
    ratios = " | ".join(f"to {name}" for name in bases)
    lines = [
        f"| | {row.unit}/s (range) | {ratios} | {of_limit}peak memory |",
        f"|---|---|{'---|' * len(bases)}---|" + ("---|" if limit else ""),
    ]
    for name, r in results.items():
        share = row.int8_share if name.endswith("int8") else 1
        part = f"{100 * r.median * share / limit.median:.0f} % | " if limit else ""
        faster = " | ".join(f"{r.median / results[base].median:.1f}" for base in bases)
        lines.append(
            f"| {name} | {rounded(r.median)} ({rounded(r.lowest)} to {rounded(r.highest)}) "
            f"| {faster} | {part}{r.peak_bytes / GIB:.1f} GiB |"
        )
    return "\n".join(lines)


def draw(measured: list[dict[str, Any]], path: Path) -> None:
    """Ratios to the first contender of each row, as bars."""
    figure = Figure(figsize=(9, 1 + 0.9 * len(measured)), layout="constrained")
    axes = figure.subplots()
    place, ticks = 0.0, []
    for row in measured:
        base = next(iter(row["results"].values()))["median"]
        for name, result in row["results"].items():
            ratio = result["median"] / base
            colour = "C1" if name.startswith("igpt") else "C0" if name == LIMIT else "C7"
            axes.barh(place, ratio, 0.8, color=colour)
            # In 8 bits half as much is read, so that these may pass it.
            of = " in bfloat16" if name == LIMIT and "igpt, int8" in row["results"] else ""
            axes.text(ratio, place, f" {name}{of}: {ratio:.1f}", va="center", fontsize=7)
            place += 1
        ticks.append((place - 0.5 - len(row["results"]) / 2, row["title"]))
        place += 0.7
    axes.set_yticks([at for at, _ in ticks], [title.replace(", ", ",\n", 1) for _, title in ticks])
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("speed, the first of each group being 1")
    axes.margins(x=0.25, y=0.02)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="", metavar="TEXT", help="only those named so")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    about = machine()
    print(json.dumps(about))
    measured: list[dict[str, Any]] = []

    def report(row: Row, results: dict[str, Result]) -> None:
        needs = f": {row.needs}" if row.needs else ""
        print(f"\n**{row.title}**{needs}\n\n{table(row, results)}", flush=True)
        described = {name: asdict(result) for name, result in results.items()}
        measured.append(
            {"title": row.title, "unit": row.unit, "needs": row.needs, "results": described}
        )

    for row in rows():
        if args.rows in row.title and (row.quick or not args.quick):
            contenders = {**row.contenders, **({LIMIT: row.limit} if row.limit else {})}
            rounds = args.rounds
            if args.quick:
                rounds = 2
                contenders = {n: c for n, c in contenders.items() if n not in ASIDE}
            report(row, contest(contenders, row.amount, rounds))
    started = {} if args.rows or args.quick else start_up_apart()
    if started:
        print(f"\n**start-up**\n\n{start_up_table(started)}")
    taken = {name: [call._asdict() for call in calls] for name, calls in started.items()}
    everything = {"machine": about, "rows": measured, "start_up": taken}
    (args.out / "bench.json").write_text(json.dumps(everything, indent=1) + "\n")
    draw(measured, args.out / "bench.png")


if __name__ == "__main__":
    main()
