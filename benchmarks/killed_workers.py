"""A run under `torchrun --max-restarts` whose workers are killed: is anything lost?

    python benchmarks/killed_workers.py --kills 5 --seed 0 parallel.shard=2

Trains a small model on two processes undisturbed, then again with `kill -9` of a random one of them
at random moments, and compares all losses, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from igpt.monitor import read_metrics

STEPS = 200
WORDS = [
    *(f"train.steps={STEPS}", "train.batch_size=8", "train.log_every=1", "train.eval_every=50"),
    *("train.checkpoint_every=10", "train.precision=float32", "model.n_layer=2", "model.n_embd=16"),
]


def start(out: Path, kills: int, words: list[str]) -> subprocess.Popen[bytes]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "--max-restarts", str(kills), "-m", "igpt", "pretrain"]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(
        [*command, "digits", *WORDS, *words, "--out", str(out)], stdout=nowhere, stderr=nowhere
    )


def losses(out: Path) -> list[tuple[object, ...]]:
    rows = read_metrics(out / "metrics.jsonl")
    return [(r["step"], r.get("loss"), r.get("val_loss")) for r in rows]


def last_step(out: Path) -> int:
    rows = read_metrics(out / "metrics.jsonl")
    return int(rows[-1]["step"] or 0) if rows else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    moments = sorted(rng.sample(range(1, STEPS - 5), args.kills))
    with tempfile.TemporaryDirectory() as folder:
        calm, disturbed = Path(folder) / "calm", Path(folder) / "disturbed"
        assert start(calm, 0, args.words).wait() == 0
        process = start(disturbed, args.kills, args.words)
        for moment in moments:
            while last_step(disturbed) < moment:
                assert process.poll() is None, "the run ended"
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))  # anywhere in a step, a validation or a checkpoint
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(rng.choice(workers)), signal.SIGKILL)
            time.sleep(0.5)
        assert process.wait() == 0
        same = losses(disturbed) == losses(calm)
    print(f"killed at steps {moments} {' '.join(args.words)}: {'equal' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
