"""What `igpt import` says of mistakes; imports that succeed are in parity/, with TensorFlow."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

MISTAKES = [
    (["import", "keras", "{tmp}/m", "--out", "{tmp}/r"], "invalid choice: 'keras'"),
    (["import", "openai", "{tmp}/m"], "--out"),
    (["import", "openai", "{tmp}/m", "--out", "{tmp}/r"], "no --clusters given"),
    (["import", "openai", "{tmp}/m", "--clusters", "{tmp}/x", "--out", "{tmp}/r"], "no palette"),
    (["import", "openai", "{tmp}/m", "--clusters", "{tmp}/m.index", "--out", "{tmp}/r"], ".npy"),
    (["import", "openai", "{tmp}/m", "--clusters", "{tmp}/flat.npy", "--out", "{tmp}/r"], "[K, 3]"),
    (["import", "openai", "{tmp}/m", "--clusters", "{tmp}/wide.npy", "--out", "{tmp}/r"], "[-1, 1"),
    (
        ["import", "openai", "{tmp}/no", "--clusters", "{tmp}/clusters.npy", "--out", "{tmp}/r"],
        "no.index is not there",
    ),
    (
        ["import", "openai", "{tmp}/m", "--clusters", "{tmp}/clusters.npy", "--out", "{tmp}/r"],
        "pip install tensorflow-cpu",
    ),
    (["import", "openai", "{tmp}/m", "--out", "{tmp}"], "is not empty"),
    (["import", "openai", "{tmp}/m", "--out", "{tmp}/flat.npy"], "flat.npy is a file"),
    (["fetch", "openai", "--model", "xl", "--ckpt", "1000000"], "invalid choice: 'xl'"),
    (["fetch", "openai", "--model", "s", "--ckpt", "7"], "invalid choice: 7"),
]


@pytest.mark.parametrize(("argv", "complaint"), MISTAKES)
def test_a_mistake_gives_one_line_status_2_and_leaves_nothing(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], complaint: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as where it is not installed
    (tmp_path / "m.index").write_bytes(b"an index")
    np.save(tmp_path / "clusters.npy", np.zeros((4, 3), np.float32))
    np.save(tmp_path / "flat.npy", np.zeros(12, np.float32))
    np.save(tmp_path / "wide.npy", np.full((4, 3), 255.0))
    before = sorted(p.name for p in tmp_path.iterdir())
    result = igpt(*[word.format(tmp=tmp_path) for word in argv])
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert complaint in result.err
    assert result.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before
