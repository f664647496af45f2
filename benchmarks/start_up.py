"""How long a command takes when there is next to nothing to do: seconds of whole processes.

    python benchmarks/start_up.py [--rounds 5]

Medians with their ranges. `bench.py` prints them too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

PRETRAIN = "pretrain digits --steps 1 --out NEW"
FIRST_STEPS = (PRETRAIN, "finetune RUN --steps 1 --out NEW")  # timed until it is told of
COMMANDS = (
    "--help",
    "info igpt-s",
    PRETRAIN,
    "eval RUN --limit 8",
    "sample RUN -n 1 --out NEW.png",
    "score RUN --limit 8 --out NEW",
    "features RUN --limit 8 --layer 1 --out NEW.npz",
)


def start_up(rounds: int = 5) -> dict[str, list[float]]:
    """Seconds of each, `rounds` times. RUN is a small model of digits."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        _seconds(PRETRAIN.replace("NEW", run))
        for _ in range(rounds):
            for first_step, commands in ((True, FIRST_STEPS), (False, COMMANDS)):
                for command in commands:
                    new = tempfile.mkdtemp(dir=folder) + "/new"
                    words = command.replace("RUN", run).replace("NEW", new)
                    name = f"igpt {command}" + (", until its first step" if first_step else "")
                    found.setdefault(name, []).append(_seconds(words, first_step))
    return found


def _seconds(words: str, first_step: bool = False) -> float:
    """Of a whole command, or until the line that tells the loss of its first step."""
    start, told = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "igpt", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"step 1/"):
                told = told or time.perf_counter() - start  # validation has a line too
        if process.wait():
            raise RuntimeError(f"igpt {words}: exit status {process.returncode}")
    return told if first_step else time.perf_counter() - start


def table(found: dict[str, list[float]]) -> str:
    """Markdown."""
    lines = ["| | seconds (range) |", "|---|---|"]
    for name, taken in found.items():
        median = statistics.median(taken)
        lines.append(f"| `{name}` | {median:.2f} ({min(taken):.2f} to {max(taken):.2f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(table(start_up(args.rounds)))


if __name__ == "__main__":
    main()
