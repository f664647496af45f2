"""The same recipe on 1, 2 and 4 processes: one loss curve, one run directory, one voice."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import igpt.pretrain
import several
from conftest import TINY, load_model, no_gpu, picture_bytes, rows, silent, tiny_recipe
from igpt.checkpoint import RunDirectory
from igpt.config import ParallelConfig, UserError
from igpt.data.loader import Batch, TokenLoader
from igpt.evaluate import picture_nats
from igpt.objectives import BERT
from igpt.parallel.processes import gather, processes, rank, size, together
from igpt.pretrain import pretrain

# What is compared with several processes is where they are: on the processor.
pytestmark = pytest.mark.usefixtures("on_processor")

# 38 pictures to validate on are 5 batches of 8, which neither 2 nor 4 processes can share evenly.
SHORT = [
    *("train.steps=4", "train.eval_every=2", "train.checkpoint_every=2"),
    "data.validation_fraction=0.025",
]
CASES = {
    "ar": [*SHORT, "data.augmentation=flip", "train.grad_clip=0.5", "train.patience=1"],
    "bert": [*SHORT, "objective=bert", "train.micro_batch_size=1", "data.augmentation=cifar"],
    "uneven": [*SHORT, "train.batch_size=12", "train.micro_batch_size=2", "train.patience=1"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 9x7, some of which cannot be read."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02}.png")
    for i in (3, 11, 17):
        (path / f"{i:02}.png").write_bytes(b"broken")
    return path


def train_all(out: Path, folder: Path) -> None:
    """Every case, in one start of the processes."""
    crops = [*SHORT, "data.augmentation=imagenet", f"data.source={folder}", "palette.colors=8"]
    with processes(ParallelConfig()):
        for name, words in {**CASES, "crops": [*crops, "data.image_size=4"]}.items():
            done = pretrain(tiny_recipe(*words), out / name, resume=False, say=silent)
            if rank() == 0:
                (out / f"{name}.json").write_text(json.dumps(done.skipped))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> dict[int, Path]:
    """Folders with a run of every case, by number of processes."""
    outs = {n: tmp_path_factory.mktemp(f"on-{n}") for n in (1, 2, 4)}
    with no_gpu():
        train_all(outs[1], folder)
    for n in (2, 4):
        several.call(n, train_all, outs[n], folder)
    return outs


@pytest.mark.parametrize("case", [*CASES, "crops"])
@pytest.mark.parametrize("n", [2, 4])
def test_the_loss_curve_is_the_same_for_any_number_of_processes(
    runs: dict[int, Path], case: str, n: int
) -> None:
    alone, shared = runs[1] / case, runs[n] / case
    for key in ("loss", "val_loss"):
        expected = rows(alone, key)
        assert expected
        assert rows(shared, key) == pytest.approx(expected, abs=2e-6), key
    ours, theirs = load_model(alone)[0].state_dict(), load_model(shared)[0].state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n", [2, 4])
def test_the_run_directory_is_the_same_and_every_process_writes_its_part_of_a_checkpoint(
    runs: dict[int, Path], n: int
) -> None:
    def files(out: Path) -> set[str]:
        names = (str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        return {name for name in names if "tensorboard" not in name and "shard" not in name}

    assert files(runs[n]) == files(runs[1])
    for folder in (runs[n] / "ar/checkpoints").glob("step-*"):
        sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
        assert len(sizes) == n
        assert max(sizes) < 1.5 * sum(sizes) / n
    assert (runs[n] / "ar/palette.npy").read_bytes() == (runs[1] / "ar/palette.npy").read_bytes()


@pytest.mark.parametrize("n", [2, 4])
def test_unreadable_pictures_of_all_processes_are_reported(runs: dict[int, Path], n: int) -> None:
    skipped = json.loads((runs[1] / "crops.json").read_text())
    assert len(skipped) == 3
    assert json.loads((runs[n] / "crops.json").read_text()) == skipped


def evaluate_and_talk(run: Path, out: Path) -> None:
    model, codec = load_model(run)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 17, (37, codec.n_tokens)))
    with processes(ParallelConfig()):
        nats = picture_nats(model.eval(), BERT(0.5, 0, "evaluate"), tokens, batch_size=4)
        (out / f"{rank()}-of-{size()}.json").write_text(
            json.dumps({"nats": nats.tolist(), "said": gather([rank(), "ä" * rank(), None])})
        )
        with pytest.raises(UserError, match="rank 0"), together():
            fail_on_first()


def fail_on_first() -> None:
    if rank() == 0:
        raise UserError("rank 0 has no disk")


def test_every_process_has_the_exact_value_of_every_picture(
    runs: dict[int, Path], tmp_path: Path
) -> None:
    run = runs[1] / "bert"
    evaluate_and_talk(run, tmp_path)
    several.call(4, evaluate_and_talk, run, tmp_path)
    expected = json.loads((tmp_path / "0-of-1.json").read_text())["nats"]
    assert len(expected) == 37
    for i in range(4):
        found = json.loads((tmp_path / f"{i}-of-4.json").read_text())
        assert found["nats"] == expected
        assert found["said"] == [[j, "ä" * j, None] for j in range(4)]


# --- the command line ----------------------------------------------------------------------------


def command(out: Path, *words: object) -> list[object]:
    return ["pretrain", "digits", *TINY, "--out", out, *words]


def wait_for_step(run: Path, step: int) -> None:
    assert several.reaches(run, step, 60), f"{run} did not come to step {step}"


def test_one_process_speaks_for_all(tmp_path: Path) -> None:
    done = several.igpt(2, *command(tmp_path / "run", *SHORT, "--json"))
    assert done.wait() == [0, 0], done.err
    assert json.loads(done.out)["step"] == 4
    assert done.err.count("1,462 pictures to train on") == 1
    assert done.err.count("step 4/4  loss") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train.lr=fast"], "train.lr"),
        (["data.source=/nowhere"], "/nowhere"),
        (["train.batch_size=9"], r"train.batch_size (9) must be a multiple of the processes (2)"),
        (["train.lr=1e30"], "the loss is nan at step"),
    ],
)
def test_a_mistake_is_one_line_once_and_status_2_of_all(
    tmp_path: Path, words: list[str], complaint: str
) -> None:
    done = several.igpt(2, *command(tmp_path / "run", *words))
    assert done.wait() == [2, 2], done.err
    (line,) = [line for line in done.err.splitlines() if "error:" in line]
    assert complaint in line
    assert "Traceback" not in done.err
    assert done.out == ""


def test_what_only_the_first_process_cannot_write_ends_all(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, where a folder is needed")
    done = several.igpt(2, *command(tmp_path / "run"))
    assert done.wait() == [2, 2], done.err
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err


def test_other_commands_are_for_one_process(tmp_path: Path) -> None:
    done = several.igpt(2, "sample", tmp_path)
    assert done.wait() == [2, 2]
    assert done.err.count("sample runs in one") == 1


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]])
def test_a_signal_to_any_process_saves_once_and_all_end_well(
    tmp_path: Path, ranks: list[int]
) -> None:
    run = tmp_path / "run"
    running = several.igpt(2, *command(run, "train.steps=100000", "train.checkpoint_every=90000"))
    wait_for_step(run, 5)
    running.send(signal.SIGTERM, ranks)
    assert running.wait() == [0, 0], running.err
    checkpoint = RunDirectory(run).latest_checkpoint()
    assert checkpoint is not None
    step = checkpoint.progress.step
    assert step >= 5
    assert max(rows(run, "loss")) == step
    assert f"stopped at step {step}" in running.out


def stopped(run: Path, where: str) -> None:
    """A signal to the second process, while it waits for pictures or validates."""
    batch = TokenLoader.batch
    arrived, validations = threading.Event(), []

    def stuck(self: TokenLoader, step: int, rows: range | None = None) -> Batch:
        if where == "wait" and rank() == 1 and step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
            arrived.wait(60)
        return batch(self, step, rows)

    def signalled(*args: Any, **options: Any) -> Any:
        validations.append(args)
        if where == "validation" and rank() == 1 and len(validations) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return picture_nats(*args, **options)

    TokenLoader.batch = stuck  # type: ignore[method-assign]
    igpt.pretrain.picture_nats = signalled
    with processes(ParallelConfig()):
        outcome = pretrain(tiny_recipe(), run, resume=False, say=silent).outcome
        arrived.set()
        assert gather(outcome.step) == [outcome.step] * 2
        assert gather(outcome.signal) == [signal.SIGTERM] * 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with no_gpu():
        pretrain(tiny_recipe(), out, resume=False, say=silent)
    return out


@pytest.mark.parametrize("where", ["wait", "validation"])
def test_a_signal_interrupts_what_a_process_waits_for_and_nothing_is_lost(
    whole: Path, tmp_path: Path, where: str
) -> None:
    run = tmp_path / "run"
    began = time.monotonic()
    several.call(2, stopped, run, where)
    assert time.monotonic() - began < 50
    pretrain(tiny_recipe(), run, resume=True, say=silent)
    for key in ("loss", "val_loss"):
        assert rows(run, key) == pytest.approx(rows(whole, key), abs=1e-5)


# name -> the processes, how they share the model, and what the second is sent
HANGS = {
    "stopped": (2, [], signal.SIGSTOP),
    "killed": (2, [], signal.SIGKILL),
    "groups": (4, ["parallel.data=2", "parallel.shard=2"], signal.SIGSTOP),
}


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> dict[str, several.Several]:
    """Runs of which a process hangs, whose others wait for it at the same time."""
    out, running = tmp_path_factory.mktemp("hanging"), {}
    for name, (n, layout, number) in HANGS.items():
        words = command(out / name, "train.steps=100000", "parallel.timeout=8", *layout)
        running[name] = several.igpt(n, *words)
        wait_for_step(out / name, 5)
        running[name].send(number, [1])
    return running


def test_a_hang_within_a_part_of_the_processes_ends_the_others_too(
    hanging: dict[str, several.Several],
) -> None:
    """Those of a split model wait in groups, which have a patience of their own."""
    running = hanging["groups"]
    for first in (0, 2, 3):
        running.processes[first].join(60)
        assert running.processes[first].exitcode not in (None, 0)
    assert "did not answer for 8 s (parallel.timeout)" in running.err
    running.wait(0)


@pytest.mark.parametrize("name", ["stopped", "killed"])
def test_a_process_that_hangs_or_is_gone_ends_the_others_in_one_line(
    hanging: dict[str, several.Several], name: str
) -> None:
    running = hanging[name]
    running.processes[0].join(60)
    assert running.processes[0].exitcode == 1
    (line,) = [line for line in running.err.splitlines() if "error:" in line]
    assert "did not answer for 8 s (parallel.timeout)" in line
    assert "Traceback" not in running.err
    running.wait(0)


def test_a_run_goes_on_with_another_number_of_processes(
    runs: dict[int, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs[4] / "ar", tmp_path / "run"))
    (run / "checkpoints/latest").write_text("step-00000002\n")
    again = several.igpt(2, "pretrain", "--out", run, "--resume")
    assert again.wait() == [0, 0], again.err
    assert rows(run, "loss") == pytest.approx(rows(runs[1] / "ar", "loss"), abs=2e-6)
    assert math.isfinite(rows(run, "val_loss")[4])


def test_evaluation_and_fine_tuning_are_the_same_for_any_number_of_processes(
    tiny_run: Path, tmp_path: Path, igpt
) -> None:
    words = ["eval", tiny_run, "--json", "--limit", "29"]
    for split in ([], ["--shard", 2]):
        shared = several.igpt(2, *words, *split)
        assert shared.wait() == [0, 0], shared.err
        assert json.loads(shared.out) == json.loads(igpt(*words).out)
    alone = igpt(*words, "--shard", 2)
    assert alone.status == 2
    assert "x shard (2) x tensor (1) are not the 1 process" in alone.err

    quick = ["--steps", 4, "--batch-size", 8, "--eval-every", 2, "train.log_every=1"]
    tune = ["finetune", tiny_run, *quick, "finetune.gen_weight=0", "--freeze", 1, "--out"]
    shared = several.igpt(2, *tune, tmp_path / "shared")
    assert shared.wait() == [0, 0], shared.err
    assert igpt(*tune, tmp_path / "alone").status == 0
    for key in ("loss", "val_accuracy"):
        expected = rows(tmp_path / "alone", key)
        assert rows(tmp_path / "shared", key) == pytest.approx(expected, abs=2e-6)


def see_different_pictures(folders: list[Path], out: Path) -> None:
    with processes(ParallelConfig()):
        recipe = tiny_recipe(f"data.source={folders[rank()]}", "palette.colors=8")
        with pytest.raises(UserError, match="the processes see different training pictures"):
            pretrain(recipe, out, resume=False, say=silent)


def test_processes_that_read_different_files_are_told(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        for i in range(24):
            (folder / f"{i:02}.png").write_bytes(picture_bytes(100 * number + i))
    several.call(2, see_different_pictures, folders, tmp_path / "run")
