"""What data, logging and checkpoints cost of a training step (aim: under 3 % together).

    python benchmarks/loop_overhead.py digits emoji32=FOLDER fashion-mnist=FOLDER
    python benchmarks/loop_overhead.py digits --steps 10 --rounds 1 --out /tmp/try    (seconds)

For each recipe, with its pictures from a folder or data set where one is named: the same compiled
step by turns on one batch repeated, and in the loop as `igpt pretrain` runs it. Within the loop the
waits for a batch, the calls that log and the checkpoints are timed one by one; checkpoints and rows
are counted at the recipe's intervals, whatever --steps. Validation is left out: it is work that was
asked for. Recipes measured already, in overhead.json of --out, are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import machine

from igpt.checkpoint import RunDirectory, write_json
from igpt.config import Recipe, TrainConfig, load_recipe
from igpt.data import Batch
from igpt.monitor import Monitor, Row
from igpt.objectives import make_objective
from igpt.pretrain import new_model, prepare
from igpt.train import Callbacks, Trainer, Validation

PARTS = ("data", "logging", "checkpoints")


class TimedTrainer(Trainer):
    """The loop, which notes the seconds of its parts, call by call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.calls: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.calls[part].append(time.perf_counter() - start)

    def _batches(self) -> Iterator[Batch]:
        batches = super()._batches()
        while True:
            with self._timed("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _log_row(self) -> Row:
        with self._timed("losses"):
            return super()._log_row()

    def _save(self) -> None:
        with self._timed("checkpoints"):
            super()._save()

    def repeat_step(self, batch: Batch, times: int) -> float:
        """Seconds a step of `times` bare optimizer steps on one batch."""
        start = time.perf_counter()
        for _ in range(times):
            self._optimizer_step(batch)
        return (time.perf_counter() - start) / times

    def run_steps(self, times: int, monitor: Monitor, intervals: TrainConfig) -> dict[str, float]:
        """Seconds a step of `times` steps in the loop, in all and by part.

        The loop waits for its first batch in full, and saves after its last step: the one is left
        out, and the other counted at its interval in `intervals`.
        """
        self.config = replace(self.config, steps=self.step + times)
        self.calls.clear()

        def log(row: Row) -> None:
            with self._timed("rows"):
                monitor.log(row)

        start = time.perf_counter()
        self.train(log)
        total = time.perf_counter() - start
        step = (total - sum(sum(taken) for taken in self.calls.values())) / times
        parts = {
            "data": sum(self.calls["data"][1:]) / times,
            # The last row is that of a validation, which was none.
            "logging": sum(
                statistics.mean(taken) / intervals.log_every
                for taken in (self.calls["losses"], self.calls["rows"][:-1])
            ),
            "checkpoints": statistics.mean(self.calls["checkpoints"]) / intervals.checkpoint_every,
        }
        return {"step": step, **parts, "all": step + sum(parts.values())}


def new_trainer(recipe: Recipe, out: Path) -> TimedTrainer:
    """As `igpt pretrain` makes it, but that it validates nothing and saves after its last step."""
    prepared = prepare(recipe, None, lambda line: print(line, file=sys.stderr))
    codec, never = prepared.codec, sys.maxsize
    config = recipe.model.resolve(codec.vocab_size, codec.n_tokens, recipe.objective == "ar")
    run = RunDirectory(out)
    run.begin(recipe, codec.palette)
    return TimedTrainer(
        new_model(config, recipe),
        make_objective(recipe.objective, recipe.mask_probability, recipe.train.seed, "train"),
        prepared.loader,
        replace(recipe.train, eval_every=never, checkpoint_every=never),
        run,
        Callbacks(lambda: Validation({}, 0.0), lambda: None),
    )


def measure(recipe: Recipe, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds a step, bare and in the loop, by turns."""
    bare: list[float] = []
    looped: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(recipe, Path(folder))
        batch = trainer.loader.batch(0)
        with Monitor(Path(folder), 0, recipe.train.steps) as monitor:
            trainer.repeat_step(batch, 3)
            trainer.run_steps(3, monitor, recipe.train)
            for _ in range(rounds):
                bare.append(trainer.repeat_step(batch, steps))
                looped.append(trainer.run_steps(steps, monitor, recipe.train))
    return {"steps": steps, "bare": bare, "looped": looped}


def row(name: str, result: dict[str, Any]) -> str:
    """A line of the table: medians over the rounds, percentages of the bare step of their round."""
    bare, looped = result["bare"], result["looped"]

    def percent(part: str) -> float:
        shares = [100 * unit[part] / alone for unit, alone in zip(looped, bare, strict=True)]
        return statistics.median(shares)

    ratios = [100 * (unit["all"] / alone - 1) for unit, alone in zip(looped, bare, strict=True)]
    whole = f"{statistics.median(ratios):+.1f} % ({min(ratios):+.1f} to {max(ratios):+.1f})"
    together = sum(percent(part) for part in PARTS)
    cells = [f"{percent(part):.2f} %" for part in PARTS]
    milliseconds = [1e3 * statistics.median(times) for times in (bare, [u["all"] for u in looped])]
    return (
        f"| {name} | {milliseconds[0]:.2f} ({1e3 * min(bare):.2f} to {1e3 * max(bare):.2f}) "
        f"| {milliseconds[1]:.2f} | {whole} | {' | '.join(cells)} | {together:.2f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE[=DATA]")
    parser.add_argument("--steps", type=int, default=50, help="of a unit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/overhead"))
    args = parser.parse_args()
    saved = args.out / "overhead.json"
    results = json.loads(saved.read_text())["recipes"] if saved.exists() else {}
    print("| recipe | bare step, ms (range) | in the loop, ms | difference (range) | "
          "waiting for data | logging | checkpoints | these three |")  # fmt: skip
    print("|---" * 8 + "|", flush=True)
    for words in args.recipes:
        name, _, data = words.partition("=")
        if name not in results:
            recipe = load_recipe(name, [f"data.source={data}"] if data else [])
            results[name] = measure(recipe, args.steps, args.rounds)
            write_json(saved, {"machine": machine(), "recipes": results})
        print(row(name, results[name]), flush=True)


if __name__ == "__main__":
    main()
