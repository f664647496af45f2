"""What the README shows is true: its commands parse, its Python runs, its files exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import igpt
from conftest import picture_bytes, silent
from igpt.cli import COMMANDS, command_parser
from igpt.cli.arguments import FIELD
from igpt.config import FinetuneConfig, Recipe, TrainConfig
from igpt.finetune import finetune, finetune_recipe
from igpt.pipeline import load
from igpt.recipes import with_overrides

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def shell_lines(page: Path) -> list[str]:
    """The page's lines as a shell reads them: joined at a backslash, its variables filled in."""
    variables: dict[str, str] = {}
    lines = []
    for line in page.read_text().replace("\\\n", " ").splitlines():
        line = re.sub(r"\$([A-Z]+)", lambda match: variables.get(match[1], match[0]), line)
        if match := re.fullmatch(r'([A-Z]+)="(.*)"', line):
            variables[match[1]] = match[2]
        lines.append(line)
    return lines


def commands() -> list[str]:
    """Every `igpt ...` of a code block or between backquotes."""
    found = []
    for page in PAGES:
        text = "\n".join(shell_lines(page))
        found += re.findall(r"^igpt (\S+ .*?)(?:\s+#.*)?$", text, re.MULTILINE)
        found += re.findall(r"`igpt ([^\s`]+ [^`]*)`", page.read_text())
    return found


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_documents_parses(line: str) -> None:
    name, *argv = shlex.split(line)
    assert name in COMMANDS
    args = command_parser(name).parse_intermixed_args(argv)
    fields = [word for word in getattr(args, "words", []) if FIELD.match(word)]
    with_overrides(Recipe(finetune=FinetuneConfig()), fields, "the page")  # which all are there


def test_every_benchmark_of_the_documents_has_the_options_that_it_is_given() -> None:
    lines = [line for page in PAGES for line in shell_lines(page)]
    given = re.findall(r"python (benchmarks/\w+\.py)([^`\n]*)", "\n".join(lines))
    assert len(given) > 20
    for script, words in given:
        text = "".join(path.read_text() for path in imported(ROOT / script))
        for option in re.findall(r"(?<= )--[a-z-]+", words):
            assert f'"{option}"' in text, f"{script} {option}"


def imported(script: Path) -> list[Path]:
    """A benchmark, those that it imports, and the arguments that commands share."""
    names = re.findall(r"^from (\w+) import", script.read_text(), re.MULTILINE)
    beside = [script.with_name(f"{name}.py") for name in names]
    shared = ROOT / "src" / "igpt" / "cli" / "arguments.py"
    return [script, shared, *(path for path in beside if path.is_file())]


def example(name: str) -> list[str]:
    """The words of the example in a command's help, after `igpt`."""
    program, *words = shlex.split(import_module(f"igpt.cli.{name}").EXAMPLE)
    assert (program, words[0]) == ("igpt", name)
    return words


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_every_command_parses(name: str) -> None:
    command_parser(name).parse_intermixed_args(example(name)[1:])


# In the order in which one makes what the next one reads, with what makes a matter of seconds of
# each: the last of two flags counts.
BRIEFLY = {
    "pretrain": ["--steps", "2", "model.n_layer=2"],
    "probe": ["--labels-per-class", "1", "--seeds", "1", "--layer", "2", "--cnn-minutes", "0.01"],
    "finetune": ["--steps", "2"],
    "predict": [],
    "complete": [],
    "eval": [],
    "features": [],
    "info": [],
    "palette": [],
    "plan": [],
    "prepare": ["--workers", "1"],
    "push": [],
    "sample": [],
    "score": ["--limit", "4"],
    "sweep": ["train.steps=2", "--labels-per-class", "4", "--grid", "colors=4"],
}
# `fetch` and `import` need OpenAI's files; tests of their own run those of the others.
ELSEWHERE = {"fetch", "import", "demo", "export"}


def test_the_examples_of_the_commands_run(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {*BRIEFLY, *ELSEWHERE} == {*COMMANDS}
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").mkdir()
    for i in range(4):
        Path(f"FOLDER/{i}.png").write_bytes(picture_bytes(i, (8, 8)))
    Path("photo.png").write_bytes(picture_bytes(9, (8, 8)))
    for name, more in BRIEFLY.items():
        result = igpt(*example(name), *more)
        assert result.status == 0, (name, result.err)


def test_the_python_of_the_readme_runs(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, labels = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    names: dict[str, object] = {"images": images}
    exec(first.replace("runs/demo", str(tiny_run)), names)
    assert names["tokens"].shape == (2, 81)  # type: ignore[attr-defined]

    classes = tmp_path / "classes"
    recipe = replace(finetune_recipe(tiny_run), train=TrainConfig(steps=1, batch_size=2))
    finetune(recipe, classes, resume=False, say=silent)
    names["p"] = load(classes)
    exec(labels.replace("layer=4", "layer=1"), names)


def test_the_blocks_of_the_page_on_python_run(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.save("pictures.npy", images)
    small = ["train.steps=2", "model.preset=igpt-nano", "data.image_size=8", "palette.colors=8"]
    names: dict[str, Any] = {"images": images}
    first, *others = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(first.replace("runs/mine", str(tiny_run)), names)
    for block in others:
        block = block.replace("data.source=FOLDER", "data.source=pictures.npy")
        block = block.replace('"train.steps=1000"', ", ".join(map(repr, small)))
        exec(block.replace("steps=1000", "steps=2").replace("range(1000)", "range(2)"), names)
    assert names["done"].outcome.step == names["trainer"].step == 2
    assert np.isfinite(igpt.load("mine").nll(images[:2])).all()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_that_a_page_points_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
