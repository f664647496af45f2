"""One recipe on several processes and split in several ways: how far apart are the loss curves?

    python benchmarks/same_curve.py --processes 2 parallel.shard=2

Trains the digits recipe for a few steps alone and under torchrun with these words, and prints the
largest difference of a step's loss and of a validation loss, in nats per pixel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from igpt.monitor import read_metrics

WORDS = ["train.steps=40", "train.log_every=1", "train.eval_every=20", "train.batch_size=32"]


def train(out: Path, processes: int, words: list[str]) -> dict[tuple[int, str], float]:
    """Losses of the run by step and kind."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "igpt", "pretrain"]
    command += ["digits", *WORDS, *words, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    rows = read_metrics(out / "metrics.jsonl")
    kinds = ("loss", "val_loss")
    return {(int(r["step"] or 0), k): float(r[k] or 0) for r in rows for k in kinds if k in r}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    # What is computed is the same, but for how it is shared.
    alone = [word for word in args.words if not word.startswith("parallel.")]
    with tempfile.TemporaryDirectory() as folder:
        expected = train(Path(folder) / "alone", 1, alone)
        found = train(Path(folder) / "shared", args.processes, args.words)
    assert found.keys() == expected.keys()
    for kind in ("loss", "val_loss"):
        apart = max(abs(found[key] - expected[key]) for key in expected if key[1] == kind)
        print(f"{args.processes} processes {' '.join(args.words)}: {kind} {apart:.2g}")


if __name__ == "__main__":
    main()
