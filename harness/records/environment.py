"""The environment of a record: machine, versions and commit; no key depends on it.

It never holds user names, absolute paths or, without runtime.record_host, the host name.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGES = (
    "bitsweep",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "lm-eval",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
)
ROUNDING_SETTINGS = (
    "ATEN_CPU_CAPABILITY",
    "BITSWEEP_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
)
GIB = 2**30


def environment(
    threads: int | None = None, device: str = "cpu", host: bool = False
) -> dict[str, Any]:
    """Facts on this machine and its software that are needed to repeat a figure.

    host  include the host name, for records of several machines.
    """
    named = {"host": platform.node()} if host else {}
    return {
        **named,
        "machine": machine(),
        "gpu": gpu(device),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": package_versions(),
        "commit": commit(),
        "threads": threads,
        "computing": computing(),
    }


def computing() -> dict[str, Any] | None:
    """Facts that determine how sums are rounded; None in a process that computes nothing.

    torch, kernels   instruction sets of torch's loops and our kernels; kernels is None if none were
                     loaded.
    blas, onednn     the matrix libraries that this torch was built with.
    settings         environment variables that choose instruction sets, if they are set.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    libc = " ".join(platform.libc_ver()).strip()
    settings = {name: os.environ[name] for name in ROUNDING_SETTINGS if name in os.environ}
    built = torch.__config__.show()
    return {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "kernels": _kernels_isa(),
        "blas": _built_with(built, r"(oneAPI Math Kernel Library Version \S+|OpenBLAS\S*)"),
        "onednn": _built_with(built, r"MKL-DNN (v\S+)"),
        "libc": libc or None,
        **({"settings": settings} if settings else {}),
    }


def _kernels_isa() -> str | None:
    """The instruction set of our kernels; builds and loads nothing."""
    packed = sys.modules.get("cuda_ext.packed")
    if packed is None or not packed.load.cache_info().currsize:
        return None
    isa: str = packed.cpu_isa()
    return isa


def _built_with(built: str, pattern: str) -> str | None:
    found = re.search(pattern, built)
    return None if found is None else found[1]


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """Processor model, cores that this process may use, and memory in GiB."""
    import psutil

    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / GIB),
    }


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Versions of the packages that figures depend on; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def commit() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether tracked files differ.

    None if it does not run from its own git checkout (an installed wheel).
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    if head is None or changes is None:
        return None
    return {"id": head, "dirty": bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware", "cpu model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu(device: str) -> dict[str, Any] | None:
    """The GPU that `device` names; None for the CPU, or if this machine has none."""
    if not device.startswith("cuda"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.device(device))
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / GIB),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }
