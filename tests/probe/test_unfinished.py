"""A fit that is kept on the disk while it is under way."""

from __future__ import annotations

from pathlib import Path

import torch

from igpt.probe.unfinished import Unfinished


def test_what_killed_processes_left_half_written_goes_with_the_next_save(tmp_path: Path) -> None:
    unfinished = Unfinished(tmp_path / "fit.safetensors", "{}")
    (tmp_path / ".fit.safetensors.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".probe.safetensors.0123abcd.tmp").write_bytes(b"of something else")
    unfinished.save(3, {"weight": torch.ones(2)})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".probe.safetensors.0123abcd.tmp", "fit.safetensors"]
    read = {"weight": torch.zeros(2)}
    assert unfinished.load(read) == 3
    assert read["weight"].tolist() == [1, 1]
