"""Files that are written whole or not at all, by whoever writes them at the same time."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from igpt.config import UserError
from igpt.disk import new_folder, require_file, write_atomically, write_text

pytestmark = pytest.mark.usefixtures("waiting_for_disks")


def test_two_threads_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    path, together = tmp_path / "new" / "file", Barrier(2)

    def write(text: str) -> None:
        def slowly(temporary: Path) -> None:
            temporary.write_text(text)
            together.wait(10)

        write_atomically(path, slowly)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["one", "two"]))
    assert path.read_text() in ("one", "two")
    assert [file.name for file in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_a_file_has_the_permissions_of_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    """Read without setting the umask, which other threads' files would take."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as forbidding:
            forbidding.delattr(os, "umask")
            write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")

    def interrupted(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", interrupted)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_link_stays_one_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for text in ("made", "replaced"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "file").read_text() == text


def test_what_is_neither_file_nor_folder_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is no file"):
        require_file(tmp_path / "pipe")


def test_a_disk_is_not_replaced_by_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(UserError, match="where a disk is mounted"), new_folder(tmp_path):
        pass


def test_a_new_folder_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "new"

    def interrupted() -> None:
        with new_folder(path) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(path.parent.iterdir()) == []
    path.mkdir()  # an empty folder may be there
    with new_folder(path) as folder:
        (folder / "whole").touch()
        assert list(path.iterdir()) == []
    assert [file.name for file in path.iterdir()] == ["whole"]
    with pytest.raises(UserError, match="is not empty"), new_folder(path):
        pass


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, rename = list[str](), os.replace

    def sync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def renamed(old: Path, new: Path) -> None:
        done.append("renamed")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", renamed)
    write_text(tmp_path / "file", "text")
    assert done == ["file", "renamed", "folder"]
