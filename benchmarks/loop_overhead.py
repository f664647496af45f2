"""What data, logging and checkpoints cost: the loop beside bare optimizer steps on one fixed batch.

    python benchmarks/loop_overhead.py fashion-mnist --data ../shared/data/fashion_mnist

Builds a run as `igpt pretrain` does and takes, in alternation, as many steps as lie between two of
the recipe's checkpoints: bare, and through the loop with its data, its log and one checkpoint.
Validation is left out: it is work that was asked for. Extra words are fields of the recipe.

Two answers: how much longer a step of the loop takes, which is blurred by whatever else the machine
does, and what share of the loop's time is not spent in its steps, which sees nothing of what runs
beside them (decoding, writing) and, on an accelerator, counts waiting for it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from igpt.checkpoint import RunDirectory
from igpt.config import Recipe
from igpt.monitor import Monitor
from igpt.objectives import generative_objective
from igpt.pretrain import training_data
from igpt.recipes import load_recipe
from igpt.run import new_model
from igpt.train import Stop, Trainer, Validation

WARM_UP = 5  # steps, in which the compiler works


def make_trainer(recipe: Recipe, run: Path) -> Trainer:
    prepared = training_data(recipe, None, lambda line: print(line, file=sys.stderr))
    shape = recipe.model_config(prepared.codec.vocab_size, prepared.codec.n_tokens)
    return Trainer(
        new_model(shape, recipe),
        generative_objective(shape, 0, stream="train"),
        prepared.loader,
        recipe.train,
        RunDirectory(run),
        lambda _: Validation({}, 0.0),
        lambda: None,
    )


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("words", nargs="*")
    args = parser.parse_intermixed_args()
    recipe = load_recipe(args.recipe, [f"data.source={args.data}", *args.words])
    n = recipe.train.checkpoint_every
    bare: list[float] = []
    loop: list[float] = []
    between: list[float] = []  # share of the loop's time
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(recipe, Path(folder))
        batch = next(iter(trainer._batches(Stop())))

        def take_bare(steps: int) -> None:
            for _ in range(steps):
                trainer._optimizer_step(batch)
            trainer._finite_losses()  # waits for an accelerator
            trainer._pending.clear()

        def take_loop() -> None:
            """To the next checkpoint, which is the last step."""
            begun = trainer.step - trainer.step % n
            trainer.progress = replace(trainer.progress, step=begun)
            trainer.config = replace(recipe.train, steps=trainer.step + n)
            with Monitor(Path(folder), trainer.step, trainer.config.steps) as monitor:
                trainer.train(monitor.log)

        take_bare(WARM_UP)
        take_loop()
        inside: list[float] = []
        step = trainer._optimizer_step
        trainer._optimizer_step = lambda batch: inside.append(  # type: ignore[method-assign]
            seconds(lambda: step(batch))
        )
        for _ in range(args.rounds):
            bare.append(seconds(lambda: take_bare(n)) / n)
            inside.clear()
            whole = seconds(take_loop)
            loop.append(whole / n)
            between.append(1 - sum(inside) / whole)
    ms = [f"{1000 * statistics.median(x):.2f} ({1000 * min(x):.2f} to {1000 * max(x):.2f})"
          for x in (bare, loop)]  # fmt: skip
    over = statistics.median(y / x - 1 for x, y in zip(bare, loop, strict=True))
    print(
        f"{args.recipe}: a bare step {ms[0]} ms, in the loop {ms[1]} ms: {over:+.1%}; "
        f"not in its steps {statistics.median(between):.1%} of the loop"
    )


if __name__ == "__main__":
    main()
