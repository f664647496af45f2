"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from igpt.device import default_device
from igpt.kernels.decode import backends

DEVICE = default_device()
ON_GPU = DEVICE.type == "cuda"


def wait() -> None:
    """Until a GPU, which is asked and not waited for, has done what it was asked."""
    if ON_GPU:
        torch.cuda.synchronize()


def give_back() -> None:
    """The GPU memory that this process keeps for its next turn: others have theirs before."""
    if ON_GPU:
        torch.cuda.empty_cache()


def peak_bytes() -> int:
    """The most memory that this process had: of a GPU's if there is one."""
    if ON_GPU:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """This process's processor, memory, threads, code and libraries, and what kernels decode on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(told.get("flags", "").split())
    return {
        "processor": told.get("model name") or platform.processor(),
        **({"gpu": torch.cuda.get_device_name()} if ON_GPU else {}),
        "vectors and tiles": sorted(flag for flag in flags if flag.startswith(("avx", "amx"))),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "igpt": f"{version('igpt')} {_commit()}".strip(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "kernels": [backend.name for backend in backends()],
    }


def _commit() -> str:
    """Of the checkout that this file lies in; nothing where there is none."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
