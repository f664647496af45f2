"""What only Linux on x86-64 has is done without elsewhere; told on Linux, by taking it away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from igpt.disk import write_text

# What macOS or Windows lack: locks of files, a process's own cores, the system's numbers; and
# another processor.
ELSEWHERE = """
import os, platform, sys, psutil  # which knows every system
sys.modules["fcntl"] = None
del os.sched_getaffinity, os.sysconf
platform.machine = lambda: "arm64"
from igpt.cli import main
sys.exit(main(sys.argv[1:]))
"""
TINY = ("--size", "8", "--colors", "8", "model.n_layer=1", "model.n_embd=32", "model.n_head=1")


@pytest.fixture
def elsewhere(tmp_path: Path):
    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr

    return run


def test_commands_need_nothing_that_only_linux_has(elsewhere, tmp_path: Path) -> None:
    elsewhere("prepare", "--data", "digits", "--size", "8", "--out", "digits8")
    elsewhere("pretrain", "digits", "--data", "digits8", *TINY, "--steps", "2", "--out", "run")
    elsewhere("sample", "run", "-n", "2", "--out", "painted.png")
    assert not (tmp_path / "cache" / "igpt").exists()  # no kernel was tried
    probing = ("--labels-per-class", "2", "--seeds", "1", "--data", "digits")
    elsewhere("probe", "run", *probing, "--layer", "1")


def test_files_are_written_where_folders_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, real_fsync, read_only = os.open, os.fsync, set[int]()

    def windows_open(path: str, flags: int, *args: int, **options: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        found = real_open(path, flags, *args, **options)
        (read_only.add if flags & (os.O_WRONLY | os.O_RDWR) == 0 else read_only.discard)(found)
        return found

    def windows_fsync(descriptor: int) -> None:
        if descriptor in read_only:
            raise OSError(9, "Bad file descriptor")
        real_fsync(descriptor)

    monkeypatch.setattr("igpt.disk.sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr("igpt.disk.os.open", windows_open)
    monkeypatch.setattr("igpt.disk.os.fsync", windows_fsync)
    write_text(tmp_path / "new" / "file.txt", "whole")
    assert (tmp_path / "new" / "file.txt").read_text() == "whole"
