"""Version of the installed torch, read from its files, because importing torch takes seconds."""

from __future__ import annotations

import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def torch_folder() -> Path:
    """Return the folder of the torch package; ModuleNotFoundError if it is not installed."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    return Path(spec.origin).parent


def torch_version() -> str:
    """Return torch.__version__ with its local part: "2.13.0+cpu"."""
    return str(_version_file()["__version__"])


def torch_cuda() -> str | None:
    """Return torch.version.cuda, the CUDA version of this torch build; None without CUDA."""
    found = _version_file()["cuda"]
    return None if found is None else str(found)


@cache
def _version_file() -> dict[str, object]:
    # The file of torch.version does not import the rest of torch.
    return runpy.run_path(str(torch_folder() / "version.py"))
