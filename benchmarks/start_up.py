"""How long a command takes when there is next to nothing to do: seconds of whole processes.

    python benchmarks/start_up.py [--rounds 5]

Medians with their ranges. `bench.py` prints them too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

PRETRAIN = "pretrain digits --steps 1 --out NEW"
COMPILED = f"{PRETRAIN} train.compile=true"
# Timed until it is told of.
FIRST_STEPS = (PRETRAIN, COMPILED, "finetune RUN --steps 1 --out NEW")
SAMPLE = "sample RUN -n 1 --out NEW.png"
NEVER_RUN = ((PRETRAIN, True), (COMPILED, True), (SAMPLE, False))  # and whether to the first step
CACHES = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")  # where the kernels and PyTorch's code lie
COMMANDS = (
    "--help",
    "info igpt-s",
    PRETRAIN,
    "eval RUN --limit 8",
    SAMPLE,
    "score RUN --limit 8 --out NEW",
    "features RUN --limit 8 --layer 1 --out NEW.npz",
    "complete RUN --limit 1 -n 1 --out NEW.png",
    "palette --data digits --size 8 --colors 16 --out NEW.npy",
    "predict TUNED --limit 8",
    "probe RUN --layer 1 --labels-per-class 1 --out NEW",
)


def start_up(rounds: int = 5) -> dict[str, list[float]]:
    """Seconds of each, `rounds` times after once to warm up. RUN is a small model of digits, TUNED
    the same fine-tuned.

    Last, twice, those that compile what they need, as when they are run for the first time.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        tuned = f"{folder}/tuned"
        _seconds(PRETRAIN, {"NEW": run})
        _seconds("finetune RUN --steps 1 --out NEW", {"RUN": run, "NEW": tuned})

        def seconds(command: str, first_step: bool, never_run: bool = False) -> float:
            here = tempfile.mkdtemp(dir=folder)
            new = f"{here}/new"
            return _seconds(
                command,
                {"RUN": run, "TUNED": tuned, "NEW": new}
                | {f"NEW.{kind}": f"{new}.{kind}" for kind in ("png", "npz", "npy")},
                first_step,
                dict.fromkeys(CACHES, here) if never_run else {},
            )

        found = {}
        for first_step, commands in ((True, FIRST_STEPS), (False, COMMANDS)):
            for command in commands:
                name = _title(command, first_step)
                found[name] = [seconds(command, first_step) for _ in range(rounds + 1)][1:]
        for command, first_step in NEVER_RUN:
            name = _title(command, first_step)
            found[f"{name}, nothing compiled"] = [
                seconds(command, first_step, never_run=True) for _ in range(2)
            ]
    return found


def _title(command: str, first_step: bool) -> str:
    return f"igpt {command}" + (", until its first step" if first_step else "")


def _seconds(
    command: str,
    names: dict[str, str],
    first_step: bool = False,
    environment: dict[str, str] | None = None,
) -> float:
    """Of a whole command, or until the line that tells the loss of its first step."""
    words = [sys.executable, "-m", "igpt", *(names.get(word, word) for word in command.split())]
    start, told = time.perf_counter(), None
    env = {**os.environ, **(environment or {})}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if told is None and line.startswith(b"step 1/"):  # validation's comes later
                told = time.perf_counter() - start
    whole = time.perf_counter() - start
    if process.returncode or (first_step and told is None):
        raise RuntimeError(f"igpt {command}: exit status {process.returncode}")
    return told if first_step and told is not None else whole


def table(found: dict[str, list[float]]) -> str:
    """Markdown."""
    lines = ["| | seconds (range) |", "|---|---|"]
    for name, taken in found.items():
        median = statistics.median(taken)
        command, comma, condition = name.partition(", ")
        row = f"`{command}`{comma}{condition}"
        lines.append(f"| {row} | {median:.2f} ({min(taken):.2f} to {max(taken):.2f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(table(start_up(args.rounds)))


if __name__ == "__main__":
    main()
