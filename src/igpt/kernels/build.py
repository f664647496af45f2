"""Compile a C++ file of this folder at its first use, and load it.

The files include nothing of PyTorch and are called through `ctypes`, so a compiler is all that is
needed and a second is enough. A library lies in the user's cache under a name made of all that it
depends on. Where there is no compiler, the callers' plain twins do the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from uuid import uuid4

import torch

from igpt.config import first_line

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
NO_TILES = "-DNO_TILES"  # a flag: vectors, on a processor that has matrix tiles too
SWITCH = "IGPT_KERNELS"  # 0 in the environment: plain PyTorch everywhere

_log = logging.getLogger(__name__)


@cache
def load(name: str, *flags: str) -> ctypes.CDLL | None:
    """The library of `<name>.cpp`, or None where it cannot be compiled or the switch is off.

    The files are written for x86-64 and compiled as on Linux; elsewhere it is None, too.
    """
    if os.environ.get(SWITCH) == "0" or not _for_this_machine():
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        _log.info("no C++ compiler: %s stays on the plain road", name)
        return None
    try:
        return ctypes.CDLL(str(_compiled(name, compiler, flags)))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = first_line(getattr(error, "stderr", None) or error)
        _log.warning("cannot compile %s, it stays on the plain road: %s", name, reason)
        return None


def constant(answer: Callable[[], bool]) -> Callable[[], bool]:
    """Mark what `torch.compile` need not trace into.

    As `torch.compiler.assume_constant_result` does, but that imports the compiler: 1.3 seconds of
    every command, and most compile nothing.
    """
    answer._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return answer


def load_for_tiles(name: str) -> ctypes.CDLL | None:
    """`load`, where there are matrix tiles."""
    return load(name) if _has_tiles() else None


def load_for_bfloat16(name: str) -> ctypes.CDLL | None:
    """`load`, where there are products in bfloat16: of matrix tiles, or of vectors of 512 bits."""
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    return load(name) if _has_tiles() else load(name, NO_TILES)


@cache
def _has_tiles() -> bool:
    """Whether the processor has matrix tiles (AMX) and the system grants them."""
    return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


def _for_this_machine() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _compiled(name: str, compiler: str, flags: Sequence[str]) -> Path:
    source = Path(__file__).with_name(f"{name}.cpp")
    threads = _threads_of_torch()
    # A processor of the same type compiles to the same code: its flags stand for -march=native.
    headers = [path.read_text() for path in sorted(source.parent.glob("*.h"))]
    flags = (*FLAGS, *flags)
    about = [source.read_text(), *headers, *flags, *threads, _version(compiler), _processor()]
    key = hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]
    library = _cache_folder() / f"{name}-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Two processes, on two machines perhaps, may both compile: each renames a whole file to the
        # same name.
        temporary = library.with_name(f".{library.name}.{uuid4().hex[:8]}")
        command = [compiler, *flags, str(source), "-o", str(temporary), *threads]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(temporary, library)
    return library


def _threads_of_torch() -> list[str]:
    """PyTorch's own OpenMP, linked first: two pools of threads would fight for the cores."""
    folder = Path(torch.__file__).parent / "lib"
    return [str(path) for path in sorted(folder.glob("libgomp*.so*"))[:1]]


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True)
    return done.stdout


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")


def _cache_folder() -> Path:
    """Of the user; RuntimeError for one without a home who names no other folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "igpt"
