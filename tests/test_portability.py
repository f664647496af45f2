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
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as stop:
        if stop.code:
            raise
"""
TINY = "--size 8 --colors 8 --steps 2 model.n_layer=1 model.n_embd=32 model.n_head=1"
COMMANDS = [
    "prepare --data digits --size 8 --workers 1 --out digits8",
    f"pretrain digits --data digits8 {TINY} --out run",
    "sample run -n 2 --out painted.png",
    "probe run --data digits --layer 1 --labels-per-class 2 --seeds 1",
]


def test_commands_need_nothing_that_only_linux_has(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *COMMANDS],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "probe" / "probe.safetensors").is_file()
    assert not (tmp_path / "cache" / "igpt").exists()  # no kernel was tried


@pytest.mark.usefixtures("waiting_for_disks")
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
