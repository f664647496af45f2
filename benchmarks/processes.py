"""What distribution costs: the same global batch on one process and on several, the same cores.

    python benchmarks/processes.py fashion-mnist --data ../shared/data/fashion_mnist

Trains a few steps with one process of N threads and with N processes of one thread, in alternation,
and prints the pictures a second of both: the median of all rows after the first, and their range.
Extra words are the recipe's; `parallel.shard=2` splits the model of the several processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from igpt.monitor import read_metrics

WORDS = ["train.steps=40", "train.log_every=5", "train.eval_every=40", "train.checkpoint_every=40"]


def speeds(out: Path, processes: int, threads: int, words: list[str]) -> list[float]:
    """Pictures a second of the run's rows but the first, which has the compiler's time."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "igpt", "pretrain"]
    command += [*words, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    rows = read_metrics(out / "metrics.jsonl")
    found = [row["pictures_per_second"] for row in rows if "pictures_per_second" in row]
    return [float(value) for value in found[1:] if value is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("words", nargs="*")
    args = parser.parse_intermixed_args()
    n = args.processes
    alone = [word for word in args.words if not word.startswith("parallel.")]
    common = [args.recipe, "--data", args.data, *WORDS]
    found: dict[str, list[float]] = {"one": [], "several": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.repeats):
            found["one"] += speeds(Path(folder) / f"one-{i}", 1, n, [*common, *alone])
            found["several"] += speeds(Path(folder) / f"{n}-{i}", n, 1, [*common, *args.words])
    one, several = (statistics.median(values) for values in found.values())
    for name, values in zip(
        (f"1 process, {n} threads", f"{n} processes"), found.values(), strict=True
    ):
        middle, least, most = statistics.median(values), min(values), max(values)
        print(f"{name}: {middle:.1f} pictures/s ({least:.1f} to {most:.1f})")
    print(f"{n} processes reach {several / one:.1%} of the throughput of one")


if __name__ == "__main__":
    main()
