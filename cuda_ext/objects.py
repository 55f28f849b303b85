"""Compile units to object files, and keep those that every library of a machine shares.

The objects of the C++ compiler do not depend on the GPU architectures, and they take longer than
those of nvcc: a build for other GPUs, or without CUDA after nvcc failed, only links them again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cuda_ext import toolchain
from cuda_ext.cache import replace_durably
from cuda_ext.toolchain import BuildError, Unit

TIMEOUT_S = 1800


def compile_units(
    units: Sequence[Unit], scratch: Path, kept: Path, *, again: bool, verbose: bool
) -> list[str]:
    """Return the paths of the units' object files, in order.

    Those of CUDA sources lie in `scratch`, the others in `kept`, a folder whose name stands for all
    that decides them; what lies there is used, unless `again`. Raises BuildError with the
    compiler's first errors, and OSError where a folder cannot be written.
    """

    def object_of(unit: Unit) -> str:
        name = unit.source.replace("/", "-") + ".o"
        made, target = scratch / name, kept / name
        if toolchain.for_gpu(unit.source):
            target = made
        elif target.is_file() and not again:
            return str(target)
        source = str(toolchain.SOURCES / unit.source)
        run((*unit.command, "-c", source, "-o", str(made)), verbose)
        if target != made:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(made, target)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(object_of, units))


def run(command: tuple[str, ...], verbose: bool) -> None:
    """Run a compiler or linker; BuildError with its first errors if it fails."""
    if verbose:
        print(shlex.join(command), flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"`{shlex.join(command)}` ran for over {TIMEOUT_S} s.") from error
    if verbose and done.stderr:
        print(done.stderr, file=sys.stderr)
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        errors = [line for line in lines if "error" in line] or lines[-5:]
        raise BuildError(
            f"{Path(command[0]).name} failed: {' / '.join(errors[:5])}. "
            "`python -m cuda_ext.build` tries again and shows everything."
        )
