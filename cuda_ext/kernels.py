"""Resolve a kernel's name, without importing torch if files on disk are sufficient.

`resolve_kernel` is for plans. A process that runs kernels calls cuda_ext.ops.resolve_kernel, which
always loads the library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from cuda_ext import build, installed, toolchain

KERNELS = ("auto", "reference", "cuda", "cpu")

_log = logging.getLogger("cuda_ext")


class KernelUnavailable(RuntimeError):
    """A kernel that was requested by name is not available on this machine."""


def resolve_kernel(name: str, device: str = "cpu") -> str:
    """Resolve `name` to the kernel on `device`: "cpu", "cuda" or "reference".

    "auto" is the device's compiled kernel if it can be loaded (it is built first if necessary), and
    otherwise "reference", with the reason in the log. A library that was loaded on this machine
    before is assumed to load, without importing torch. Raises KernelUnavailable for a kernel that
    was requested by name and is missing, ValueError for an unknown name.
    """
    return choose(name, device, _why_unavailable)


def choose(name: str, device: str, why_not: Callable[[str], str | None]) -> str:
    """Resolve like `resolve_kernel`; why_not(device) is why no kernel runs there, or None."""
    if name not in KERNELS:
        raise ValueError(f"kernel={name!r} is unknown; choose one of {', '.join(KERNELS)}.")
    if name == "reference":
        return name
    kind = _kind(device)
    if name == "auto":
        reason = why_not(device)
        if reason is not None:
            _say_once(f"kernel=auto uses the reference kernel on {kind}: {reason}")
            return "reference"
        return kind
    here = kind == name
    reason = why_not(device if here else name)
    if reason is None and not here:
        reason = f"the layer is on {device}; move it to {name}."
    if reason is not None:
        raise KernelUnavailable(
            f"kernel={name!r} is not available: {reason} Or use kernel=reference (plain PyTorch), "
            "or kernel=auto for the best available kernel."
        )
    return name


def why_unavailable(device: str, load: Callable[[], build.Library]) -> str | None:
    """Return why the compiled kernels cannot run on a device, in one sentence; None if they can.

    load returns the library or raises BuildError; it is not called if the machine has no device of
    that kind.
    """
    kind = _kind(device)
    if kind not in ("cpu", "cuda"):
        return f"this version of Bitsweep has no kernels for {kind}."
    if kind == "cuda" and not toolchain.visible_capabilities():
        version = installed.torch_version()
        return f"no GPU: PyTorch sees no CUDA device here (torch {version})."
    try:
        library = load()
    except toolchain.BuildError as error:
        return str(error)
    return None if kind == "cpu" else _why_not_on_gpu(library, device)


def _why_unavailable(device: str) -> str | None:
    # The capability of a GPU needs torch anyway, so nothing is saved by avoiding its import.
    return why_unavailable(device, build.loadable if _kind(device) == "cpu" else build.load)


def _why_not_on_gpu(library: build.Library, device: str) -> str | None:
    import torch

    if not library.architectures:
        return f"the library has no CUDA part: {library.without_cuda}"
    major, minor = torch.cuda.get_device_capability(torch.device(device))
    if toolchain.covers(library.architectures, (major, minor)):
        return None
    return (
        f"the library has no code for sm_{major}{minor}, the architecture of {device}, only "
        f"for {', '.join(library.architectures)}; build it with "
        f"`BITSWEEP_CUDA_ARCHS=sm_{major}{minor} python -m cuda_ext.build` (the kernels need sm_80 "
        "or newer)."
    )


def _kind(device: str) -> str:
    return device.partition(":")[0]


@cache
def _say_once(message: str) -> None:
    _log.warning(message)
