"""`igpt demo` through its entry point."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import assert_mistake, is_sheet, signalled_pretrain


def test_the_demo_shows_all_it_promises(igpt, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = igpt("demo", "--out", out, "--steps", 4)
    assert result.status == 0, result.err
    for name in ("samples", "completions", "palette", "loss"):
        assert is_sheet(out / "figures" / f"{name}.png")
        assert str(out / "figures" / f"{name}.png") in result.out
    assert "bits per pixel on 297 held-out digits" in result.out
    assert result.out.count("\n  igpt ") == 3
    values = json.loads(igpt("demo", "--out", out, "--json").out)  # of so many steps too
    assert 0 < values["context_model"] < values["position_histogram"] < np.log2(17)
    assert_mistake(igpt("demo", "--out", out, "--steps", 40), "its recipe has another train.steps")


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_signal_ends_it_with_the_line_that_goes_on(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    monkeypatch.setattr("igpt.pretrain.pretrain", signalled_pretrain(name))
    out = tmp_path / "a demo"
    result = igpt("demo", "--out", out, "--steps", 2)
    assert result.status == status, result.err
    assert result.out == f"stopped at step 2; go on with: igpt demo --out '{out}'\n"
    values = json.loads(igpt("demo", "--out", out, "--json").out)
    assert values == {"run": str(out), "step": 2, "signal": name}
