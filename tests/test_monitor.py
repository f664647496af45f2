"""What a run says: its metrics file, and progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from igpt.config import UserError
from igpt.monitor import Monitor, read_metrics


def row(step: int) -> dict[str, float | int]:
    return {"step": step, "loss": 1.0 / step, "lr": 0.003, "pictures_per_second": 100.0}


def test_every_row_is_a_line_of_json_at_once(tmp_path: Path) -> None:
    with Monitor(tmp_path, 0, 10) as monitor:
        for step in (1, 2, 3):
            monitor.log(row(step))
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert json.loads(lines[-1]) == row(step)
        monitor.log({"step": 3, "val_loss": 0.25})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        *(row(step) for step in (1, 2, 3)),
        {"step": 3, "val_loss": 0.25},
    ]


def test_rows_after_the_step_resumed_from_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row(s)) + "\n" for s in range(1, 8)) + '{"step": 8, "lo')
    with Monitor(tmp_path, 5, 10) as monitor:
        assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4, 5]
        monitor.log(row(6))
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4, 5, 6]


def test_a_fresh_run_begins_a_fresh_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(1)) + "\n")
    with Monitor(tmp_path, 0, 10):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_loss_that_is_no_number_is_written_as_null(tmp_path: Path) -> None:
    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log({**row(1), "loss": math.nan})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log(row(1))
        monitor.log(row(2))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


def test_off_a_terminal_progress_is_plain_lines_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log(row(5))
        monitor.log({"step": 5, "val_loss": 0.25})
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("step 5/10  loss 0.2000 nats/token  lr 3.0e-03  100.0 pictures/s  ETA ")
    assert second == "step 5/10  validation 0.2500 nats/token"


def test_on_a_terminal_progress_is_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Monitor(tmp_path, 0, 10) as monitor:
        monitor.log(row(5))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 5/10" in captured.err
    assert "pictures/s" in captured.err


def test_weights_and_biases_is_asked_for_and_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install"):
        Monitor(tmp_path, 0, 10, wandb=True)
