"""How long a command takes when there is next to nothing to do: whole processes.

    python benchmarks/start_up.py [--rounds 5]

Medians with their ranges, and peak memory. `bench.py` prints them too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

KIB, GIB = 2**10, 2**30
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
    "plan igpt-s-imagenet32 --gpus 8 --gpu h100",
    "prepare --data digits --size 8 --out NEW",
    "sweep digits --grid image_size=8 --steps 1 --out NEW",
)


class Taken(NamedTuple):
    """By one call."""

    seconds: float
    peak_bytes: int


def start_up_apart() -> dict[str, list[Taken]]:
    """`start_up` in a small process: of a command, no less than its parent's memory is counted."""
    command = [sys.executable, __file__, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    return {name: [Taken(*call) for call in calls] for name, calls in found.items()}


def start_up(rounds: int = 5) -> dict[str, list[Taken]]:
    """What each takes, `rounds` times after once to warm up. RUN is a small model of digits, TUNED
    the same fine-tuned.

    Last, twice, those that compile what they need, as when they are run for the first time.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        tuned = f"{folder}/tuned"
        _taken(PRETRAIN, {"NEW": run})
        _taken("finetune RUN --steps 1 --out NEW", {"RUN": run, "NEW": tuned})

        def taken(command: str, first_step: bool, never_run: bool = False) -> Taken:
            here = tempfile.mkdtemp(dir=folder)
            new = f"{here}/new"
            return _taken(
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
                found[name] = [taken(command, first_step) for _ in range(rounds + 1)][1:]
        for command, first_step in NEVER_RUN:
            name = _title(command, first_step)
            found[f"{name}, nothing compiled"] = [
                taken(command, first_step, never_run=True) for _ in range(2)
            ]
    return found


def _title(command: str, first_step: bool) -> str:
    return f"igpt {command}" + (", until its first step" if first_step else "")


def _taken(
    command: str,
    names: dict[str, str],
    first_step: bool = False,
    environment: dict[str, str] | None = None,
) -> Taken:
    """By a whole command; or the seconds until the line that tells the loss of its first step."""
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
        _, status, usage = os.wait4(process.pid, 0)  # which knows its memory
        process.returncode = os.waitstatus_to_exitcode(status)
    whole = time.perf_counter() - start
    if process.returncode or (first_step and told is None):
        raise RuntimeError(f"igpt {command}: exit status {process.returncode}")
    seconds = told if first_step and told is not None else whole
    return Taken(seconds, usage.ru_maxrss * KIB)


def table(found: dict[str, list[Taken]]) -> str:
    """Markdown."""
    lines = ["| | seconds (range) | peak memory |", "|---|---|---|"]
    for name, calls in found.items():
        seconds, peaks = zip(*calls, strict=True)
        command, comma, condition = name.partition(", ")
        lines.append(
            f"| `{command}`{comma}{condition} | {statistics.median(seconds):.2f} "
            f"({min(seconds):.2f} to {max(seconds):.2f}) | {max(peaks) / GIB:.2f} GiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print numbers in place of the table")
    args = parser.parse_args()
    found = start_up(args.rounds)
    print(json.dumps(found) if args.json else table(found))


if __name__ == "__main__":
    main()
