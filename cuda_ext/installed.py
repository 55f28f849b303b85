"""The torch that is installed, as its files say it: importing torch takes seconds."""

from __future__ import annotations

import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def torch_folder() -> Path:
    """The package's folder; ModuleNotFoundError where torch is not installed."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    return Path(spec.origin).parent


def torch_version() -> str:
    """torch.__version__ with its local part, "2.13.0+cpu"."""
    return str(_version_file()["__version__"])


def torch_cuda() -> str | None:
    """torch.version.cuda, the CUDA version that torch was built with; None without CUDA."""
    found = _version_file()["cuda"]
    return None if found is None else str(found)


@cache
def _version_file() -> dict[str, object]:
    # torch.version, which torch itself reads its version from, imports nothing of torch.
    return runpy.run_path(str(torch_folder() / "version.py"))
