"""Downloads from a server on this machine, a good one and several bad ones."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import assert_mistake
from igpt.config import UserError
from igpt.interop import download
from igpt.interop.download import fetch_file, published_files

BODY = bytes(range(256)) * 1000


class Server(ThreadingHTTPServer):
    """Serves BODY at every path but /missing..., and keeps the ranges that it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.break_after: int | None = None  # bytes of the body
        self.knows_ranges, self.tells_size = True, True
        self.asked: list[tuple[str, str | None]] = []  # path, range

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.asked.append((self.path, wanted))
        start = int(wanted[len("bytes=") : -1]) if wanted and server.knows_ranges else 0
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if server.tells_size:
            self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        end = len(BODY) if server.break_after is None else start + server.break_after
        self.wfile.write(BODY[start:end])

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def unseen(_done: int, _total: int) -> None:
    """A `show` that shows nothing."""


def fetch(url: str, path: Path, show: Callable[[int, int], None] = unseen) -> None:
    fetch_file(url, path, show)


def test_a_file_arrives_with_progress_and_is_not_asked_for_twice(server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        fetch(server.address + "/a", tmp_path / "a", lambda *counts: seen.append(counts))
    assert (tmp_path / "a").read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert server.asked == [("/a", None)]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_broken_download_goes_on_where_it_broke_off(server, tmp_path: Path) -> None:
    server.break_after = 100_000
    for came in ("100,000", "200,000"):
        with pytest.raises(UserError, match=f"broke off after {came} of 256,000 bytes"):
            fetch(server.address + "/a", tmp_path / "a")
        assert [p.name for p in tmp_path.iterdir()] == ["a.part"]
    server.break_after = None
    fetch(server.address + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_without_ranges_sends_the_file_anew(server, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "a.part").write_bytes(b"what came before")
    fetch(server.address + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("size", [len(BODY), len(BODY) + 1])
def test_a_part_that_cannot_be_continued_is_fetched_anew(server, tmp_path: Path, size: int) -> None:
    (tmp_path / "a.part").write_bytes(bytes(size))
    fetch(server.address + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_two_downloads_at_once_leave_no_broken_file(server, tmp_path: Path) -> None:
    def append(_done: int, _total: int) -> None:
        with (tmp_path / "a.part").open("ab") as other:
            other.write(b"what another download appends")

    with pytest.raises(UserError, match="another download wrote the same file"):
        fetch(server.address + "/a", tmp_path / "a", append)
    assert not list(tmp_path.iterdir())
    fetch(server.address + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_size_that_is_not_told_and_a_missing_file_are_errors(server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/missing: the server answers 404, Not Found"):
        fetch(server.address + "/missing", tmp_path / "a")
    server.tells_size = False
    with pytest.raises(UserError, match="does not say how large"):
        fetch(server.address + "/a", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_published_files_are_those_of_download_py() -> None:
    store = "https://openaipublic.blob.core.windows.net/image-gpt"
    files = published_files("s", 1000000, bert=False)
    folder = f"{store}/checkpoints/igpt-s/1000000"
    assert files[0] == f"{folder}/model.ckpt-1000000.data-00000-of-00032"
    assert files[-2:] == [
        f"{folder}/model.ckpt-1000000.index",
        f"{store}/color-clusters/kmeans_centers.npy",
    ]
    assert len(files) == 34
    large = published_files("l", 131000, bert=True)
    assert large[63] == (
        f"{store}/checkpoints/igpt-l-bert/131000/model.ckpt-131000.data-00063-of-00064"
    )
    assert len(large) == 66


def test_the_command_fetches_all_and_goes_on(
    igpt, server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STORE", server.address)
    out = tmp_path / "igpt-s"
    words = ("fetch", "openai", "--model", "s", "--ckpt", 131000, "--out", out)
    server.break_after = 1000
    broken = igpt(*words)
    assert broken.status == 2
    assert broken.err.count("\n") == 1
    assert "broke off after 1,000 of 256,000 bytes; the same command goes on there" in broken.err
    server.break_after = None
    result = igpt(*words, "--json")
    assert json.loads(result.out) == {"checkpoint": str(out / "model.ckpt-131000"), "files": 34}
    assert "34/34 kmeans_centers.npy, 256,000 bytes" in result.err
    names = sorted(p.name for p in out.iterdir())
    assert len(names) == 35
    names.remove("origin.txt")
    assert names[0] == "kmeans_centers.npy"
    assert all((out / name).read_bytes() == BODY for name in names)


def test_the_files_of_two_models_never_share_a_folder(
    igpt, server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STORE", server.address)
    words = ("fetch", "openai", "--ckpt", 131000, "--out", tmp_path / "dl", "--model")
    assert igpt(*words, "m").status == 0
    server.asked.clear()
    for other in (["s"], ["m", "--bert"]):
        assert_mistake(igpt(*words, *other), "has files from " + server.address)
    assert igpt(*words, "m").status == 0  # all is there
    assert server.asked == []


@pytest.mark.parametrize("there", ["", ".", "made"])
def test_without_a_network_the_command_says_so_in_one_line(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    """And leaves the folder as it was: not there, or empty."""
    monkeypatch.chdir(tmp_path)
    out = Path(there or "new")
    if there:
        out.mkdir(exist_ok=True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as deaf:  # bound, so that nobody else takes it, and not listening
        deaf.bind(("127.0.0.1", 0))
        monkeypatch.setattr(download, "STORE", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        result = igpt("fetch", "openai", "--model", "s", "--ckpt", 131000, "--out", out)
    assert result.status == 2
    assert result.err == (
        "igpt fetch: error: cannot reach 127.0.0.1 (Connection refused): is there a network?\n"
    )
    assert out.exists() == bool(there)
    assert not list(tmp_path.rglob("*.*"))
