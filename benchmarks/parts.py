"""What each part of the speed is worth: a training step without one at a time, and attention alone;
and where the time of a step goes.

    python benchmarks/parts.py [--rounds 3]

Prints tables as `bench.py` does; ratios are to the whole of igpt, and of attention to what PyTorch
has. Of attention's products two are counted forward and five backward, which makes one of the two
again. The activation has a kernel only where the processor multiplies bfloat16.
"""

from __future__ import annotations

import argparse
import json

from bench import Row, table
from contest import Contender, contest
from machine import machine
from peers import SMALL, Work, attend_causally, attention_gflops, train_ours
from torch.profiler import ProfilerActivity, profile

from igpt.kernels import activation, attention
from igpt.kernels.build import constant

BATCH = 8
PARTS = ("the attention kernel", "the activation kernel", "memory that is kept", "the compiler")
# What PyTorch's profiler calls them; the rest is norms, residuals, embeddings, loss and Adam.
OPERATORS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention, forward": ("igpt::attention",),
    "attention, backward": ("igpt::attention_backward",),
    "the activation, both ways": ("igpt::quick_gelu", "igpt::quick_gelu_backward"),
}
PROFILED = 5  # steps
# Pictures, heads, tokens, width of a head.
SHAPES = ((32, 4, 196, 32), (8, 4, 1024, 32), (4, 8, 1024, 64), (1, 8, 4096, 64))


def train_without(part: str) -> Work:
    """A training step in which `part` is what plain PyTorch does."""
    if part == "the attention kernel":
        attention._has_library = constant(lambda *_, **__: False)
    elif part == "the activation kernel":
        activation._available = constant(lambda: False)
    compiled, keep_memory = part != "the compiler", part != "memory that is kept"
    return train_ours(SMALL, BATCH, True, compiled, keep_memory)


def training() -> Row:
    contenders = {
        "igpt": Contender(train_ours, (SMALL, BATCH, True, True)),
        **{f"without {part}": Contender(train_without, (part,)) for part in PARTS},
        "without all of them": Contender(train_ours, (SMALL, BATCH, False, False)),
    }
    return Row("training step, L=8 d=128, 1,024 tokens, batch 8", "pictures", BATCH, contenders)


def where_time_goes() -> str:
    """A table of a compiled step's milliseconds, by kind of operator."""
    step = train_ours(SMALL, BATCH, True, True)
    for _ in range(PROFILED):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED):
            step()
    taken = {e.key: e.self_cpu_time_total / PROFILED / 1e3 for e in profiled.key_averages()}
    found = {kind: sum(taken.pop(n, 0) for n in names) for kind, names in OPERATORS.items()}
    found["the rest"] = sum(taken.values())
    whole = sum(found.values())
    lines = [f"| {kind} | {ms:.0f} | {100 * ms / whole:.0f} % |" for kind, ms in found.items()]
    return "\n".join(["| | ms a step | |", "|---|---|---|", *lines])


def attending(shape: tuple[int, int, int, int], backward: bool) -> Row:
    B, H, T, D = shape
    passes, products = ("forward and backward", 7) if backward else ("forward", 2)
    contenders = {
        "scaled_dot_product_attention": Contender(attend_causally, (shape, False, backward)),
        "igpt": Contender(attend_causally, (shape, True, backward)),
    }
    title = f"causal attention {passes}, {B} pictures, {H} heads, {T:,} tokens, width {D}"
    return Row(title, "GFLOP", attention_gflops(shape) * products / 2, contenders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(machine()))
    rows = [training(), *(attending(shape, way) for shape in SHAPES for way in (False, True))]
    for row in rows:
        results = contest(row.contenders, row.amount, args.rounds)
        print(f"\n**{row.title}**\n\n{table(row, results)}", flush=True)
    print(f"\n**where the time of the whole step goes**\n\n{where_time_goes()}")


if __name__ == "__main__":
    main()
