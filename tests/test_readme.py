"""What the README shows is true: its commands parse, its Python runs, its files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from conftest import picture_bytes
from igpt.cli import COMMANDS, command_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """Every `igpt ...` of a code block or between backquotes, and each command's example."""
    found = []
    for page in PAGES:
        text = page.read_text()
        found += re.findall(r"^igpt (\S+ .*?)(?:\s+#.*)?$", text.replace("\\\n", " "), re.MULTILINE)
        found += re.findall(r"`igpt (\S+ [^`]*)`", text)
    return found


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_documents_parses(line: str) -> None:
    name, *argv = shlex.split(line)
    assert name in COMMANDS
    command_parser(name).parse_intermixed_args(argv)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_every_command_parses(name: str) -> None:
    from importlib import import_module

    words = shlex.split(import_module(f"igpt.cli.{name}").EXAMPLE)
    assert words[:2] == ["igpt", name]
    command_parser(name).parse_intermixed_args(words[2:])


def test_the_python_of_the_first_screen_runs(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for name in ("digit.png", "other.png"):
        (tmp_path / name).write_bytes(picture_bytes(0, (8, 8)))
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    names: dict[str, object] = {"images": images}
    exec(block.replace("runs/demo", str(tiny_run)), names)
    assert names["tokens"].shape == (2, 81)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_that_a_page_points_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
