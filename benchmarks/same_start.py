"""Does this code still train as a kept run was trained? Its first steps again, loss beside loss.

    python benchmarks/same_start.py runs/fm14-L8 runs/fm14-L4 --steps 100

Pretrains each run's recipe anew with its palette, stops after so many steps, and prints the largest
difference from what the run has logged, in nats per pixel. A training is the same to the bit on the
same kind of machine with as many threads: 0 tells, in a minute instead of hours, that the run is
what this code makes.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from igpt.monitor import read_metrics


def losses(run: Path) -> dict[int, float]:
    """By step; nothing of a run that has not begun."""
    log = run / "metrics.jsonl"
    rows = read_metrics(log) if log.exists() else []
    return {int(row["step"] or 0): float(row["loss"] or 0) for row in rows if "loss" in row}


def start_again(run: Path, steps: int, out: Path) -> dict[int, float]:
    command = [sys.executable, "-m", "igpt", "pretrain", str(run / "recipe.yaml")]
    command += ["--palette", str(run / "palette.npy"), "--out", str(out)]
    with open(out.with_suffix(".txt"), "w") as said:
        training = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while training.poll() is None and max(losses(out), default=0) < steps:
            time.sleep(0.5)
        training.send_signal(signal.SIGTERM)
        training.wait()
    found = losses(out)
    assert found, out.with_suffix(".txt").read_text()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    for run in args.runs:
        kept = losses(run)
        with tempfile.TemporaryDirectory() as folder:
            found = start_again(run, args.steps, Path(folder) / "run")
        both = sorted(kept.keys() & found.keys())
        apart = max(abs(kept[step] - found[step]) for step in both)
        print(f"{run.name}: {len(both)} losses to step {both[-1]}, {apart:.2g} apart", flush=True)


if __name__ == "__main__":
    main()
