"""Do two checkouts of this code compute the same? Short trainings and all that follows, by both.

    git worktree add old c84a972; python benchmarks/same_numbers.py old .

AR and BERT are pretrained and fine-tuned on the digits, in float32 and in bfloat16, then probed,
scored and made to predict, on one thread and without C++ kernels. Prints of each log and result
whether it is the same to the bit, but for times and names. (Thirteen minutes of one core.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PRETRAIN = (
    "pretrain digits --steps 40 --eval-every 20 train.log_every=1 train.warmup_steps=10 "
    "train.compile=false --objective {objective} --precision {precision} --out {name}"
)
FINETUNE = (
    "finetune {name} --labels-per-class 20 --steps 10 --batch-size 16 --eval-every 10 "
    "train.log_every=1 --precision {precision} --out {name}-classes"
)
MEASURED = {
    "eval": "eval {name} --precision {precision}",
    "probe": "probe {name} --labels-per-class 4 10 --seeds 2 --precision {precision} --out p",
    "grid": "probe {name} --layer 1 --pool grid:2 --pca 16 --labels-per-class 10 --seeds 2 --out g",
    "predict": "predict {name}-classes --split test --precision {precision}",
    "score": "score {name} --limit 50 --out s",
}
ALONE = {"IGPT_KERNELS": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
VARYING = {"pictures_per_second", "name", "picture", "corrected_bits_per_pixel", "skipped"}


def results(checkout: Path) -> dict[str, Any]:
    """All logs and results of a checkout, by name."""
    env = {**os.environ, **ALONE, "PYTHONPATH": str(checkout.resolve() / "src")}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:

        def igpt(command: str) -> Any:
            words = [sys.executable, "-m", "igpt", *command.split(), "--json"]
            done = subprocess.run(words, cwd=folder, env=env, check=True, capture_output=True)
            return json.loads(done.stdout)

        for objective in ("ar", "bert"):
            for precision in ("float32", "bfloat16"):
                name = f"{objective}-{precision}"
                told = {"objective": objective, "precision": precision, "name": name}
                igpt(PRETRAIN.format(**told))
                igpt(FINETUNE.format(**told))
                for run in (name, f"{name}-classes"):
                    log = (Path(folder) / run / "metrics.jsonl").read_text().splitlines()
                    found[f"log of {run}"] = [json.loads(line) for line in log]
                for kind, command in MEASURED.items():
                    found[f"{kind} of {name}"] = igpt(command.format(**told))
    return found


def numbers(result: Any) -> Any:
    """A result without what may vary."""
    if isinstance(result, dict):
        return {key: numbers(value) for key, value in result.items() if key not in VARYING}
    return [numbers(value) for value in result] if isinstance(result, list) else result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs=2, type=Path)
    old, new = map(results, parser.parse_args().checkouts)
    for name, result in old.items():
        same = numbers(result) == numbers(new[name])
        print(f"{name}: {'the same to the bit' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
