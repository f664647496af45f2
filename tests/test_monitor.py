"""The log of a run: what is on disk after a kill, and what is said while it trains."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from igpt.config import UserError
from igpt.monitor import Monitor, Row, Seen, best_value, last_step, read_metrics


def train_row(step: int, loss: float = 0.5) -> Row:
    return {"step": step, "loss": loss, "lr": 3e-3, "pictures_per_second": 123.4}


def write_run(run_dir: Path, steps: range) -> None:
    with Monitor(run_dir, steps.start, 10) as monitor:
        for step in steps:
            monitor.log(train_row(step + 1, loss=1 / (step + 1)))


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log(train_row(1))
        assert read_metrics(monitor.path) == [train_row(1)]
        monitor.log({"step": 1, "val_loss": 0.75})
        assert read_metrics(monitor.path) == [train_row(1), {"step": 1, "val_loss": 0.75}]


def test_a_run_without_metrics_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_run_is_told_by_its_last_step_and_its_best_values() -> None:
    rows: list[Seen] = [
        {"step": 5, "val_loss": 2.0, "val_accuracy": 0.5},
        {"step": 10, "val_loss": None, "val_accuracy": 0.75},  # diverged
        {"step": 11, "loss": 1.0},
    ]
    assert (last_step(rows), last_step([])) == (11, 0)
    assert (best_value(rows, "val_loss"), best_value(rows, "val_accuracy")) == (2.0, 0.75)
    assert best_value(rows, "val_balanced_accuracy") is None


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}]


def test_a_row_that_is_no_object_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('5\n{"step": 1, "loss": 0.5}\n')
    with pytest.raises(UserError, match="line 1: not a row"):
        read_metrics(path)


def test_a_row_that_a_nearly_full_disk_takes_in_part_stops_the_run(tmp_path: Path) -> None:
    class NearlyFull(io.FileIO):
        def write(self, line: bytes) -> int:  # type: ignore[override]
            return super().write(line[:9])

    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log(train_row(1))
        monitor._file.close()
        monitor._file = NearlyFull(monitor.path, "a")  # type: ignore[assignment]
        with pytest.raises(UserError, match="No space left"):
            monitor.log(train_row(2))
    assert read_metrics(monitor.path) == [train_row(1)]


def test_a_killed_and_resumed_run_writes_the_undisturbed_runs_file(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    write_run(undisturbed, range(10))
    write_run(killed, range(7))
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss"')
    write_run(killed, range(4, 10))  # its last checkpoint was of step 4
    expected = (undisturbed / "metrics.jsonl").read_bytes()
    assert (killed / "metrics.jsonl").read_bytes() == expected


def test_a_run_from_the_first_step_begins_a_fresh_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val_loss": 9.0}\n{"step": 1}\n')
    with Monitor(tmp_path, 0, 10) as monitor:
        assert read_metrics(monitor.path) == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_null_in_valid_json(tmp_path: Path, loss: float) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log(train_row(1, loss))
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {**train_row(1), "loss": None}


def test_lines_tell_the_progress_where_stderr_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log(train_row(10))
        monitor.log({"step": 10, "val_loss": 0.75})
    out, err = capsys.readouterr()
    assert out == ""
    train, validation = err.splitlines()
    assert train == ("step 10/10  loss 0.5000 nats  lr 3.0e-03  123.4 pictures/s  ETA 0:00")
    assert validation == "step 10/10  validation loss 0.7500"


def test_the_time_left_counts_the_steps_of_this_session_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("igpt.monitor.time.monotonic", lambda: now[0])
    with Monitor(tmp_path, 100, 1100) as monitor:
        now[0] = 400.0  # 100 of 1000 steps: an hour is left
        monitor.log(train_row(200))
    assert capsys.readouterr().err.endswith("ETA 1:00:00\n")


def test_a_terminal_gets_a_bar_and_keeps_validation_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log(train_row(5))
        monitor.log({"step": 5, "val_loss": 0.75})
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())  # without colours
    assert "loss 0.5000 nats" in shown
    assert "123.4 pictures/s" in shown
    assert "━" in shown
    assert "step 5/10  loss" not in shown
    assert "validation loss 0.7500" in shown


def test_tensorboard_shows_a_resumed_run_as_one_curve(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    write_run(tmp_path, range(7))
    write_run(tmp_path, range(4, 10))
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in scalars] == list(range(1, 11))
    assert [value for _, value in scalars] == pytest.approx([1 / step for step, _ in scalars])


def test_asking_for_wandb_without_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Monitor(tmp_path, 0, 10, wandb=True)


def test_wandb_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("api_key not configured\nlog in first")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match=r"cannot start Weights & Biases: api_key not configured$"):
        Monitor(tmp_path, 0, 10, wandb=True)


def test_a_runs_page_at_wandb_is_its_own_wherever_the_run_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []

    def init(id: str, **_: object) -> None:
        pages.append(id)
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for name in ("first", "first", "moved", "second"):
        if name == "moved":
            (tmp_path / "first").rename(tmp_path / "moved")
        (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(UserError, match="no network"):
            Monitor(tmp_path / name, 0, 10, wandb=True)
    assert pages[0] == pages[1] == pages[2] != pages[3]
