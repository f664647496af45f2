"""The rules of the house, read off the syntax trees: who may import whom, and what nobody does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "igpt"
FILES = sorted(SOURCE.rglob("*.py"))

# From the ground up: a room imports only from rooms before it.
ROOMS = [
    "types",
    "config",
    "console",
    "recipes",
    "disk",
    "device",
    "plan",
    "rng",
    "kernels",
    "palette",
    "order",
    "data",
    "attention",
    "model",
    "objectives",
    "parallel",
    "interop",
    "folder",
    "checkpoint",
    "prepare",
    "monitor",
    "evaluate",
    "probe",
    "classify",
    "baselines",
    "train",
    "warm_start",
    "run",
    "pretrain",
    "finetune",
    "decoders",
    "sample",
    "plots",
    "share",
    "pipeline",
    "sklearn",
    "study",
    "run_data",
    "probing",
    "sweep",
    "score",
    "cli",
]


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Modules that a file imports; those under TYPE_CHECKING cost nothing and do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in tree.body if top_level_only else ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative name"
            assert node.module
            yield node.module
            if node.module == "igpt":  # `from igpt import plan` names a room too
                yield from (f"igpt.{alias.name}" for alias in node.names)


def test_every_file_is_in_a_room_of_the_list() -> None:
    assert {room(path) for path in FILES} == {*ROOMS, "__init__", "__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_from_rooms_below_it(path: Path) -> None:
    if room(path) in ("__init__", "__main__"):
        return
    allowed = ROOMS[: ROOMS.index(room(path)) + 1]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("igpt.")}
    assert used <= set(allowed), f"{path.name} reaches up to {used - set(allowed)}"


def test_the_model_knows_neither_files_nor_processes_nor_sampling() -> None:
    for name in ("attention", "model"):
        used = set(imports(SOURCE / f"{name}.py"))
        allowed = {
            "__future__",
            "collections.abc",
            "dataclasses",
            "functools",
            "math",
            "torch",
            "torch.nn.functional",
            "typing",
            "igpt.attention",
            "igpt.kernels.activation",
            "igpt.kernels.attention",
        }
        assert used <= {*allowed, "igpt.config"}


# What is imported, one after the other -> what is not yet there then.
LIGHT = {
    "igpt.cli, igpt.config": ("torch", "numpy", "datasets", "omegaconf"),
    "igpt.pretrain, igpt.pipeline": ("torch._dynamo", "sklearn", "scipy", "matplotlib"),
}


def test_what_is_heavy_is_imported_when_it_is_needed() -> None:
    lines = ["import sys"]
    for modules, heavy in LIGHT.items():
        lines += [f"import {modules}", f"print([m for m in {heavy} if m in sys.modules])"]
    assert run_python("\n".join(lines)).split() == ["[]", "[]"]


def test_what_does_not_compile_does_not_import_the_compiler(tiny_run: Path, tmp_path: Path) -> None:
    run, sheet = str(tiny_run), str(tmp_path / "sheet.png")
    commands = [["eval", run, "--limit", "2"], ["sample", run, "-n", "1", "--out", sheet]]
    script = f"""
import sys
from igpt.cli import main
for words in {commands}:
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code
    print("torch._dynamo" in sys.modules)
"""
    said = run_python(script).splitlines()
    assert [line for line in said if line in ("True", "False")] == ["False"] * 2
    assert Path(sheet).is_file()


def run_python(script: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_transformers_is_for_tests_and_nothing_is_unpickled() -> None:
    for path in FILES:
        modules = {name.split(".")[0] for name in imports(path)}
        assert not modules & {"transformers", "pickle", "dill", "joblib"}, path
        text = path.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        assert text.count("np.load(") <= text.count("allow_pickle=False"), path


def test_devices_and_types_are_decided_in_one_room() -> None:
    for path in FILES:
        if room(path) not in ("device", "kernels"):  # kernels are made for one type
            text = path.read_text()
            assert "cuda" not in text, path
            assert "torch.bfloat16" not in text, path
            ours = re.search(r"from igpt\.device import [^)]*\bautocast\b", text)
            assert "autocast(" not in text or ours, path


def test_the_loop_mentions_no_pixels_and_no_foreign_names() -> None:
    text = (SOURCE / "train.py").read_text().lower()
    for word in ("pixel", "palette", "huggingface", "transformers", "shard"):
        assert word not in text.split('"""', 2)[2], word


def test_files_can_be_read_in_a_sitting() -> None:
    long = {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long
