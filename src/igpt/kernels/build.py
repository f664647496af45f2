"""Compile a C++ file of this folder at its first use, and load it.

The files include no header of PyTorch and are called through `ctypes`, so compiling needs only a
compiler, and about a second. A library is kept in the user's cache, and its name has a hash of all
that it depends on. Where there is no compiler, the callers' plain twins do the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import ParamSpec

import torch

from igpt.config import UserError, first_line
from igpt.disk import write_atomically

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
NO_TILES = "-DNO_TILES"  # a flag: use vectors even if the processor has matrix tiles
SWITCH = "IGPT_KERNELS"  # 0 in the environment: plain PyTorch everywhere

P = ParamSpec("P")

_log = logging.getLogger(__name__)


@cache
def load(name: str, *flags: str) -> ctypes.CDLL | None:
    """The library of `<name>.cpp`, or None where it cannot be compiled or the switch is off.

    Also None anywhere but on x86-64 Linux, for which the files and the flags are written.
    """
    if os.environ.get(SWITCH) == "0" or not _for_this_machine():
        return None
    try:  # flags may follow the compiler, and a launcher like ccache come before it
        compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
        if shutil.which(compiler[0]) is None:
            level = logging.WARNING if "CXX" in os.environ else logging.INFO
            _log.log(level, "no C++ compiler %s: %s stays on plain PyTorch", compiler[0], name)
            return None
        return _library(name, compiler, flags)
    except (OSError, RuntimeError, ValueError, UserError, subprocess.CalledProcessError) as error:
        reason = first_line(getattr(error, "stderr", None) or error)
        _log.warning("cannot compile %s, it stays on plain PyTorch: %s", name, reason)
        return None


_forked = False


def _remember_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_remember_fork)


def threads() -> int:
    """How many a kernel takes: in a process that was forked one, as OpenMP would wait forever for
    the others, which stayed with its parent.
    """
    return 1 if _forked else torch.get_num_threads()


def constant(answer: Callable[P, bool]) -> Callable[P, bool]:
    """Mark `answer` as a constant, so that `torch.compile` does not trace into it.

    `torch.compiler.assume_constant_result` does the same, but imports the compiler: that costs
    every command 1.3 seconds, and most compile nothing.
    """
    answer._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return answer


def load_for_tiles(name: str) -> ctypes.CDLL | None:
    """`load`, but None where there are no matrix tiles."""
    return load(name) if _has_tiles() else None


def load_for_bfloat16(name: str) -> ctypes.CDLL | None:
    """`load`, but None where the processor has no products in bfloat16.

    They are of matrix tiles if it has them, else of vectors of 512 bits.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    return load(name) if _has_tiles() else load(name, NO_TILES)


@cache
def _has_tiles() -> bool:
    """Whether the processor has matrix tiles (AMX) and the system grants them."""
    return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


def _for_this_machine() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _library(name: str, compiler: Sequence[str], flags: Sequence[str]) -> ctypes.CDLL:
    source = Path(__file__).with_name(f"{name}.cpp")
    openmp = _openmp_of_torch()
    # -march=native gives the same code on processors with the same flags, so these stand for it.
    headers = [path.read_text() for path in sorted(source.parent.glob("*.h"))]
    flags = (*FLAGS, *flags)
    about = [source.read_text(), *headers, *flags, *compiler, *openmp]
    about += [_version(compiler), _processor()]
    key = hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]
    library = _cache_folder() / f"{name}-{key}.so"
    if library.exists():
        with suppress(OSError):  # a damaged one is made anew
            return ctypes.CDLL(str(library))

    def compile_to(path: Path) -> None:
        command = [*compiler, *flags, str(source), "-o", str(path), *openmp]
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")

    # Several processes, perhaps on several machines, may compile at once.
    write_atomically(library, compile_to)
    return ctypes.CDLL(str(library))


def _openmp_of_torch() -> list[str]:
    """PyTorch's own OpenMP, to link with: two pools of threads would compete for the cores."""
    folder = Path(torch.__file__).parent / "lib"
    return [str(path) for path in sorted(folder.glob("libgomp*.so*"))[:1]]


def _version(compiler: Sequence[str]) -> str:
    command = [*compiler, "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    return done.stdout


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")


def _cache_folder() -> Path:
    """The user's cache folder; RuntimeError with neither XDG_CACHE_HOME nor a home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "igpt"
