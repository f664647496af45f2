"""The loop: its schedule, its sums, and how it stops."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from conftest import load_model, newest, rows, silent, tiny_recipe, write_pictures
from igpt.checkpoint import CheckpointWriter, RunDirectory
from igpt.config import Diverged, TrainConfig, UserError
from igpt.data.decode import PART
from igpt.data.loader import Batch, TokenLoader
from igpt.data.sources import open_data
from igpt.data.splits import training_splits
from igpt.evaluate import picture_nats
from igpt.objectives import AR, BERT
from igpt.palette import Palette
from igpt.pretrain import pretrain, training_data
from igpt.run_data import RunData
from igpt.train import Stop, learning_rate
from igpt.types import Pixels, Tokens
from igpt.warm_start import inherited_recipe


def train(path: Path, *overrides: str, resume: bool = False) -> dict[int, float]:
    pretrain(tiny_recipe(*overrides), path, resume=resume, say=silent)
    return rows(path, "loss")


def test_the_rate_warms_up_linearly_and_falls_to_zero_as_a_cosine() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, lr=2.0)
    rates = [learning_rate(step, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[110] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_every_step_is_taken_at_the_rate_that_is_logged(tmp_path: Path) -> None:
    taken: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: taken.extend(group["lr"] for group in optimizer.param_groups)
    )
    try:
        train(tmp_path / "run")
    finally:
        hook.remove()
    assert taken == [learning_rate(step, tiny_recipe().train) for step in range(12)]
    assert list(rows(tmp_path / "run", "lr").values()) == taken


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, lr=2.0, schedule="constant")
    rates = [learning_rate(step, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert set(rates[10:]) == {2.0}


def test_the_first_loss_is_ln_k_and_it_falls(tmp_path: Path) -> None:
    losses = train(tmp_path / "run", "train.steps=40", "train.lr=0.01")
    assert losses[1] == pytest.approx(math.log(17), abs=1e-5)
    assert losses[40] < losses[1] - 0.4


@pytest.mark.usefixtures("on_processor")
def test_a_run_is_a_function_of_its_seed(tmp_path: Path) -> None:
    a, b = train(tmp_path / "a"), train(tmp_path / "b")
    assert a == b
    assert a != train(tmp_path / "c", "train.seed=1")


def test_micro_batches_are_passed_one_by_one_and_do_not_change_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, nats, at_once = train(tmp_path / "a"), AR.nats, list[int]()

    def counted(self: AR, logits: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():  # not in validation
            at_once.append(len(logits))
        return nats(self, logits, *inputs)

    monkeypatch.setattr(AR, "nats", counted)
    parts = train(tmp_path / "b", "train.micro_batch_size=2")
    assert at_once == [2] * (12 * 8 // 2)
    assert parts == pytest.approx(whole, abs=1e-5)


def norms_of_steps(path: Path, *overrides: str) -> list[float]:
    """Of all gradients together, as each optimizer step takes them."""
    found: list[float] = []

    def look(optimizer: torch.optim.Optimizer, _args: object, _options: object) -> None:
        assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        found.append(torch.stack(norms).norm().item())

    hook = register_optimizer_step_pre_hook(look)
    try:
        train(path, "train.steps=4", "train.betas=[0.8,0.9]", *overrides)
    finally:
        hook.remove()
    return found


def test_the_optimizer_takes_the_recipes_betas_and_clipped_gradients(tmp_path: Path) -> None:
    assert min(norms_of_steps(tmp_path / "free")) > 0.02
    clipped = norms_of_steps(tmp_path / "clipped", "train.grad_clip=0.01")
    assert clipped == pytest.approx([0.01] * 4, rel=1e-3)


@pytest.mark.parametrize("word", ["none", "flip", "cifar"])
def test_pretraining_augments_as_its_recipe_says(word: str) -> None:
    loader = training_data(tiny_recipe(f"data.augmentation={word}"), None, silent).loader
    assert loader.augmentation == word


def test_with_a_known_palette_a_set_is_never_held_as_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted, at_once = training_data(tiny_recipe(), None, silent), []
    encode = Palette.encode

    def count(palette: Palette, images: Pixels) -> Tokens:
        at_once.append(len(images))
        return encode(palette, images)

    monkeypatch.setattr(Palette, "encode", count)
    known = training_data(tiny_recipe(), fitted.codec.palette, silent)
    assert max(at_once) == PART < sum(at_once) == 1500
    assert torch.equal(known.validation, fitted.validation)
    assert isinstance(known.loader, TokenLoader)
    assert isinstance(fitted.loader, TokenLoader)
    assert np.array_equal(known.loader.tokens, fitted.loader.tokens)


@pytest.mark.usefixtures("on_processor")
@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(tmp_path: Path, objective: str) -> None:
    words = [f"objective={objective}", "data.augmentation=flip"]
    whole = train(tmp_path / "whole", *words)
    path = tmp_path / "parts"
    train(path, *words)
    # As a kill after step 9 leaves it: the checkpoint of step 8, later rows, a line cut short.
    run = RunDirectory(path)
    (run.checkpoints / "latest").write_text("step-00000008\n")
    lines = run.metrics.read_text().splitlines()
    run.metrics.write_text("\n".join(lines[:11]) + '\n{"step": 9, "lo')
    pretrain(None, path, resume=True, say=silent)
    assert rows(path, "loss") == whole
    assert rows(path, "val_loss") == rows(tmp_path / "whole", "val_loss")
    (ours, mine), (theirs, other) = newest(path), newest(tmp_path / "whole")
    assert ours == theirs
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = AR.__call__, []

    def breaks_at_step_seven(self: AR, model: Any, *inputs: torch.Tensor) -> torch.Tensor:
        value = original(self, model, *inputs)
        calls.append(torch.is_grad_enabled())
        return value * (math.nan if sum(calls) == 7 else 1.0)

    monkeypatch.setattr(AR, "__call__", breaks_at_step_seven)
    with pytest.raises(UserError, match=r"nan at step 7, with learning rate 0\.00"):
        train(tmp_path / "run", "train.log_every=5")
    state, tensors = newest(tmp_path / "run")
    assert state.step == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_step_that_breaks_the_weights_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from igpt.train import Trainer

    original = Trainer._optimizer_step

    def breaks_the_weights_at_step_eight(self: Trainer, batch: Any) -> None:
        original(self, batch)
        if self.step == 8:
            self.model.wte.data[0, 0] = math.inf

    monkeypatch.setattr(Trainer, "_optimizer_step", breaks_the_weights_at_step_eight)
    with pytest.raises(UserError, match="weights are not finite at step 8"):
        train(tmp_path / "run", "train.eval_every=100")
    state, _ = newest(tmp_path / "run")
    assert state.step == 4
    with pytest.raises(UserError, match="weights are not finite at step 8"):
        train(tmp_path / "new", "train.eval_every=8", "train.checkpoint_every=12")
    assert not (tmp_path / "new" / "model.safetensors").exists()  # it would have been the first


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from igpt.train import Trainer

    step_of, write = Trainer._optimizer_step, HuggingFaceStorageWriter.write_data
    done, two_later, published = list[int](), threading.Event(), list[int]()

    def step_and_tell(self: Trainer, batch: Any) -> None:
        step_of(self, batch)
        done.append(self.step)
        published.append(len(list(self.run.checkpoints.glob("step-*"))))
        if self.step == 6:
            two_later.set()

    def write_after_two_steps(*args: Any) -> Any:
        assert two_later.wait(60)
        return write(*args)

    monkeypatch.setattr(Trainer, "_optimizer_step", step_and_tell)
    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", write_after_two_steps)
    train(tmp_path / "run")
    assert done == list(range(1, 13))
    assert published[:6] == [0] * 6  # the one of step 4 is written after step 6
    state, _ = newest(tmp_path / "run")
    assert state.step == 12


@pytest.mark.usefixtures("on_processor")
def test_a_signal_does_not_wait_for_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = train(tmp_path / "whole"), tmp_path / "run"
    batch, arrived = TokenLoader.batch, threading.Event()

    def stuck_at_the_eighth(self: TokenLoader, step: int, rows: range | None = None) -> Batch:
        if step == 7 and not arrived.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            arrived.wait(60)
        return batch(self, step, rows)

    monkeypatch.setattr(TokenLoader, "batch", stuck_at_the_eighth)
    began = time.monotonic()
    done = pretrain(tiny_recipe(), path, resume=False, say=silent)
    assert time.monotonic() - began < 30
    arrived.set()
    assert done.outcome.signal == signal.SIGTERM
    assert newest(path)[0].step == done.outcome.step <= 7
    assert train(path, resume=True) == whole


@pytest.mark.usefixtures("on_processor")
def test_steps_before_pictures_that_break_off_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path, batch = train(tmp_path / "whole"), tmp_path / "run", TokenLoader.batch

    def broken_off(self: TokenLoader, step: int, rows: range | None = None) -> Batch:
        if step == 7:
            raise UserError("the server is gone")
        return batch(self, step, rows)

    with monkeypatch.context() as patched:
        patched.setattr(TokenLoader, "batch", broken_off)
        with pytest.raises(UserError, match="the server is gone"):
            train(path)
    assert newest(path)[0].step == 7
    assert train(path, resume=True) == whole


def test_a_validation_that_is_no_number_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_number(*args: Any, **options: Any) -> torch.Tensor:
        return picture_nats(*args, **options) * math.nan

    monkeypatch.setattr("igpt.pretrain.picture_nats", no_number)
    with pytest.raises(Diverged, match="validation is nan at step"):
        train(tmp_path / "run")


def resumed_and_stopped_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The step of a run that makes what it owes and is stopped before the next step."""
    batch, sent = TokenLoader.batch, threading.Event()

    def signalled(self: TokenLoader, step: int, rows: range | None = None) -> Batch:
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step, rows)

    with monkeypatch.context() as patched:
        patched.setattr(TokenLoader, "batch", signalled)
        return pretrain(None, path, resume=True, say=silent).outcome.step


def signal_validation(number: int, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Send SIGTERM in the validation of that number from now; what grows by one at each."""
    validations: list[object] = []

    def signalled(*args: Any, **options: Any) -> torch.Tensor:
        validations.append(args)
        if len(validations) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return picture_nats(*args, **options)

    monkeypatch.setattr("igpt.pretrain.picture_nats", signalled)
    return validations


@pytest.mark.usefixtures("on_processor")
def test_a_validation_that_a_signal_cuts_short_is_made_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole")
    path = tmp_path / "run"
    signal_validation(2, monkeypatch)
    done = pretrain(tiny_recipe(), path, resume=False, say=silent)
    (_, second, *_) = rows(tmp_path / "whole", "val_loss")
    assert (done.outcome.signal, done.outcome.step) == (signal.SIGTERM, second)
    assert newest(path)[0].step == second
    assert second not in rows(path, "val_loss")
    assert resumed_and_stopped_at_once(path, monkeypatch) == second
    assert train(path, resume=True) == rows(tmp_path / "whole", "loss")
    assert rows(path, "val_loss") == rows(tmp_path / "whole", "val_loss")
    lines = (path / "metrics.jsonl").read_text()
    assert lines.count("val_loss") == len(rows(path, "val_loss"))  # each once
    assert newest(path)[0] == newest(tmp_path / "whole")[0]


@pytest.mark.usefixtures("on_processor")
def test_a_last_validation_that_was_owed_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    validations = signal_validation(3, monkeypatch)
    done = pretrain(tiny_recipe(), path, resume=False, say=silent)
    assert (done.outcome.signal, done.outcome.step) == (signal.SIGTERM, 12)
    for _ in range(2):
        pretrain(None, path, resume=True, say=silent)
        assert len(validations) == 4
        assert newest(path)[0].validated == 12


@pytest.mark.usefixtures("on_processor")
def test_a_validation_that_was_owed_is_noted_beside_the_weights_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, latest = tmp_path / "run", "checkpoints/step-00000012"
    signal_validation(3, monkeypatch)
    pretrain(tiny_recipe(), path, resume=False, say=silent)
    assert newest(path)[0].validated < 12
    before = {file.name: file.stat().st_ino for file in (path / latest).glob("*.safetensors")}
    pretrain(None, path, resume=True, say=silent)
    assert newest(path)[0].validated == 12
    after = {file.name: file.stat().st_ino for file in (path / latest).glob("*.safetensors")}
    assert after == before


def test_a_palette_file_may_be_named_from_anywhere_and_be_gone_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32)).save("p.npy")
    recipe = tiny_recipe("train.steps=2", "palette.path=p.npy")
    pretrain(recipe, tmp_path / "run", resume=False, say=silent)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert RunDirectory(tmp_path / "run").recipe().palette.path == str(tmp_path / "p.npy")
    whole = replace(recipe, palette=replace(recipe.palette, path=str(tmp_path / "p.npy")))
    pretrain(whole, tmp_path / "run", resume=True, say=silent)
    with pytest.raises(UserError, match=r"has another palette\.path"):
        pretrain(recipe, tmp_path / "run", resume=True, say=silent)
    (tmp_path / "p.npy").unlink()
    pretrain(recipe, tmp_path / "run", resume=True, say=silent)


def test_a_palette_file_that_is_missing_is_told_before_pictures_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igpt.pretrain.open_data", lambda _data: pytest.fail("read"))
    with pytest.raises(UserError, match="no palette file"):
        train(tmp_path / "run", "palette.path=none.npy")
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_logged_as_asked_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for _ in range(2):
        with pytest.raises(UserError, match="pip install wandb"):
            train(tmp_path / "run", "train.wandb=true")


def test_a_directory_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path / "run", "train.steps=4")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="--resume"):
        train(tmp_path / "run")
    with pytest.raises(UserError, match=r"has another train\.steps"):
        train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    how = ("train.compile=true", "train.log_every=3", "train.checkpoint_every=2")
    train(tmp_path / "run", "train.steps=4", *how, resume=True)  # how is not what


def test_a_run_whose_pictures_were_moved_goes_on_and_is_tested_on_what_it_held_out(
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path / "here", *(f"{i}.png" for i in range(20)))
    run, there = tmp_path / "run", tmp_path / "there"
    # Another seed than the default: what was held out must not be drawn by that.
    words = ("data.image_size=4", "train.steps=4", "train.seed=3")
    train(run, f"data.source={tmp_path / 'here'}", *words)
    held_out = {Path(p.name(i)).name for p in [RunData.of(run).pictures()] for i in range(len(p))}
    assert len(held_out) == 2
    shutil.copytree(tmp_path / "here", tmp_path / "copy")
    with pytest.warns(UserWarning, match="the run learned from 20 pictures, as many as"):
        RunData.of(run, str(tmp_path / "copy")).pictures()
    (tmp_path / "here").rename(there)
    train(run, f"data.source={there}", *words, resume=True)
    moved = RunData.of(run, str(there)).pictures()
    assert {Path(moved.name(i)).name for i in range(len(moved))} == held_out
    again = inherited_recipe(run, str(there))
    _, validation = training_splits(open_data(again.data), again.data, again.split_seed)
    assert {Path(validation.name(i)).name for i in range(len(validation))} == held_out
    with pytest.raises(UserError, match=r"another data\.source"):
        train(run, "data.source=digits", *words, resume=True)
    # Others are not its own: not of another number, and not those that are all for testing.
    there.rename(tmp_path / "away")
    write_pictures(tmp_path / "other", *(f"{i}.png" for i in range(21)))
    write_pictures(tmp_path / "tests", *(f"test/{i}.png" for i in range(20)))
    with pytest.warns(UserWarning, match="'train', its only one, is taken"):
        assert len(RunData.of(run, str(tmp_path / "other")).pictures()) == 21
    assert len(RunData.of(run, str(tmp_path / "tests")).pictures()) == 20
    with pytest.raises(UserError, match="had 20 pictures to train and validate on when the run"):
        train(run, f"data.source={tmp_path / 'other'}", *words, resume=True)


def test_other_pictures_are_not_gone_on_with_though_there_is_a_validation_split(
    tmp_path: Path,
) -> None:
    files = [f"{split}/{i}.png" for split in ("train", "val") for i in range(9)]
    write_pictures(tmp_path / "here", *files)
    write_pictures(tmp_path / "others", *files, "train/more.png")
    words = ("data.image_size=4", "train.steps=4")
    train(tmp_path / "run", f"data.source={tmp_path / 'here'}", *words)
    write_pictures(tmp_path / "here", "train/more.png")
    with pytest.raises(
        UserError, match="had 18 pictures to train and validate on when the run began, and has 19"
    ):
        train(tmp_path / "run", f"data.source={tmp_path / 'here'}", *words, resume=True)
    (tmp_path / "here" / "train" / "more.png").unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(UserError, match="has 19 now"):
        train(tmp_path / "run", f"data.source={tmp_path / 'others'}", *words, resume=True)
    train(tmp_path / "run", f"data.source={tmp_path / 'there'}", *words, resume=True)


def test_there_is_nothing_to_resume_in_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="to resume"):
        pretrain(None, tmp_path / "run", resume=True, say=silent)
    assert not (tmp_path / "run").exists()


def test_pictures_that_cannot_be_decoded_leave_no_run(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    with pytest.raises(UserError):
        train(tmp_path / "run", f"data.source={tmp_path / 'pictures'}")
    assert not (tmp_path / "run").exists()


@contextmanager
def after_every_step(act: Callable[[], object]) -> Iterator[None]:
    hook = register_optimizer_step_post_hook(lambda *_: act() and None)
    try:
        yield
    finally:
        hook.remove()


def test_the_speed_that_is_logged_is_that_of_the_steps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def slow_validation(*args: Any, **options: Any) -> torch.Tensor:
        now[0] += 100
        return picture_nats(*args, **options)

    def slow_step() -> None:
        now[0] += 2

    monkeypatch.setattr("igpt.pretrain.picture_nats", slow_validation)
    monkeypatch.setattr("igpt.train.time", SimpleNamespace(monotonic=lambda: now[0]))
    with after_every_step(slow_step):
        train(tmp_path / "run", "train.log_every=3")
    speeds = rows(tmp_path / "run", "pictures_per_second")
    assert speeds == dict.fromkeys((3, 6, 9, 12), 8 / 2)  # validated after 4, 8 and 12


def test_a_checkpoint_is_published_as_soon_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, folder = list[int](), tmp_path / "run" / "checkpoints"
    monkeypatch.setattr(CheckpointWriter, "is_written", lambda _: True)
    with after_every_step(lambda: published.append(len([*folder.glob("step-*")]))):
        train(tmp_path / "run")
    assert published[:8] == [0] * 5 + [1] * 3  # that of step 4


def test_a_second_signal_and_one_after_training_act_as_without_it() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    theirs = signal.getsignal(signal.SIGTERM)
    try:
        with (stop := Stop()).on_signals():
            signal.raise_signal(signal.SIGTERM)
            assert (stop.signal, seen) == (signal.SIGTERM, [])
            signal.raise_signal(signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        with Stop().on_signals():
            pass
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_bert_run_hides_as_much_as_its_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: dict[bool, list[float]] = {True: [], False: []}  # in training, in validation
    nats = BERT.nats

    def counted(self: BERT, logits: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        hidden[torch.is_grad_enabled()].append(inputs[1].float().mean().item())
        return nats(self, logits, *inputs)

    monkeypatch.setattr(BERT, "nats", counted)
    recipe = tiny_recipe("objective=bert", "mask_probability=0.5")
    pretrain(recipe, tmp_path, resume=False, say=silent)
    for shares in hidden.values():
        assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert load_model(tmp_path)[0].config.mask_probability == 0.5
