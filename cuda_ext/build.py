"""Builds the shared library of the packed operators once, keeps it in a cache, and says why not.

`python -m cuda_ext.build` builds ahead of time (for a cluster, or to see the compiler's messages);
otherwise the first kernel that is asked for does. The library is bound through LibTorch's stable
ABI, so it serves every Python and every torch from TORCH_TARGET on. The cache is the folder
BITSWEEP_CACHE, or bitsweep in XDG_CACHE_HOME, or ~/.cache/bitsweep; its entries are named by what
they were made from: the sources, the compilers, their flags and the ABI of torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "libbitsweep_kernels.so"
TORCH_TARGET = (2, 10)  # the oldest torch whose stable ABI the library uses
COMMON = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# Instruction sets are chosen at run time: only the file of a set may be compiled for it.
X86_FLAGS = {"cpu/avx2.cpp": AVX2, "cpu/avx512.cpp": AVX512}
HEADERS = (".h", ".cuh")
TIMEOUT_S = 1800

_log = logging.getLogger("cuda_ext")


class BuildError(RuntimeError):
    """The library cannot be built or loaded here; the message says why and what to do."""


@dataclass(frozen=True)
class Unit:
    """One source file (relative to csrc) and the full command that compiles it, less its output."""

    source: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """What is there: the path of the library, or the reason why there is none."""

    library: Path | None
    reason: str
    compiler: str | None
    cache: Path


def cache_folder() -> Path:
    """Where built libraries are kept."""
    if named := os.environ.get("BITSWEEP_CACHE"):
        return Path(named) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bitsweep" / "kernels"


def find_compiler() -> str:
    """The C++ compiler: CXX, or the first of g++, clang++ and c++; BuildError if there is none."""
    if named := os.environ.get("CXX"):
        found = shutil.which(shlex.split(named)[0])
        if found is None:
            raise BuildError(f"CXX={named} is not a program here; correct it or unset it.")
        return found
    for name in ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return found
    raise BuildError(
        "no C++ compiler (g++, clang++ or c++) is on PATH; install one (Debian: apt install g++; "
        "conda: cxx-compiler), or set CXX."
    )


def units() -> list[Unit]:
    """What has to be compiled here: every .cpp of csrc with the flags it needs."""
    compiler = find_compiler()
    include = Path(torch.__file__).parent / "include"
    major, minor = TORCH_TARGET
    common = (
        *COMMON,
        f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000ULL",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
    )
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    found = []
    # The .cu files of the CUDA kernels will be units here too, compiled by nvcc when it is there.
    for path in sorted(SOURCES.rglob("*.cpp")):
        name = path.relative_to(SOURCES).as_posix()
        extra = X86_FLAGS.get(name, ()) if x86 else ()
        found.append(Unit(name, (compiler, *common, *extra, "-isystem", str(include))))
    return found


def library_key(planned: list[Unit]) -> str:
    """Sixteen hexadecimal digits for the sources, compilers, flags and torch of a library."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".cpp", ".cu", *HEADERS):
            digest.update(path.relative_to(SOURCES).as_posix().encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    for unit in planned:
        # The last word is the folder of torch's headers; their version is in the digest instead.
        digest.update(repr((unit.source, unit.command[1:-1])).encode())
    for compiler in sorted({unit.command[0] for unit in planned}):
        digest.update(_version(compiler).encode())
    digest.update(".".join(torch.__version__.split(".")[:2]).encode())
    return digest.hexdigest()[:16]


def build(*, again: bool = False, verbose: bool = False) -> Path:
    """The path of the library, built if it is not in the cache; BuildError saying what went wrong.

    Processes that ask at the same time wait for one of them to build. A build that failed is not
    tried again for the same sources and compilers, unless `again`.
    """
    if sys.platform != "linux":
        raise BuildError(f"the kernels are built on Linux only, and this is {sys.platform}.")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < TORCH_TARGET:
        raise BuildError(f"torch {torch.__version__} is older than 2.10, the first with this ABI.")
    planned = units()
    folder = cache_folder() / library_key(planned)
    library, failure = folder / LIBRARY, folder / "failed.txt"
    if library.is_file() and not again:
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if again:
                failure.unlink(missing_ok=True)
            elif library.is_file():  # another process built it meanwhile
                return library
            if failure.is_file():
                raise BuildError(failure.read_text())
            _make(planned, folder, verbose)
    except OSError as error:
        raise BuildError(
            f"the cache {folder} cannot be written ({error}); set BITSWEEP_CACHE to a folder that "
            "can."
        ) from error
    return library


@cache
def load() -> Path:
    """Build if needed and register the operators with torch, once a process; BuildError if not."""
    library = build()
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise BuildError(
            f"{library} cannot be loaded ({error}); build it again with `python -m cuda_ext.build`."
        ) from error
    return library


def status() -> Status:
    """What there is, without compiling anything: for `bitsweep doctor`."""
    try:
        planned = units()
        folder = cache_folder() / library_key(planned)
    except BuildError as error:
        return Status(None, str(error), None, cache_folder())
    compiler = f"{planned[0].command[0]} ({_version(planned[0].command[0]).splitlines()[0]})"
    if (folder / LIBRARY).is_file():
        return Status(folder / LIBRARY, "", compiler, folder)
    failure = folder / "failed.txt"
    reason = (
        failure.read_text() if failure.is_file() else "not built yet; the first use will build it."
    )
    return Status(None, reason, compiler, folder)


def _make(planned: list[Unit], folder: Path, verbose: bool) -> None:
    _log.warning("building the CPU kernels, once for this machine: about half a minute")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = [str(Path(scratch) / f"{index}.o") for index in range(len(planned))]
        commands = [
            (*unit.command, "-c", str(SOURCES / unit.source), "-o", target)
            for unit, target in zip(planned, objects, strict=True)
        ]
        try:
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                list(pool.map(lambda command: _run(command, verbose), commands))
            made = Path(scratch) / LIBRARY
            libraries = Path(torch.__file__).parent / "lib"
            # torch is in the process already: its libraries are found by name, without a path.
            link = ("-shared", *objects, f"-L{libraries}", "-ltorch", "-ltorch_cpu", "-lc10")
            _run((planned[0].command[0], *link, "-o", str(made)), verbose)
        except BuildError as error:
            (folder / "failed.txt").write_text(str(error))
            raise
        notes = {
            "seconds": round(time.monotonic() - start, 1),
            "torch": torch.__version__,
            "commands": {unit.source: shlex.join(unit.command) for unit in planned},
        }
        (folder / "build.json").write_text(json.dumps(notes, indent=1) + "\n")
        os.replace(made, folder / LIBRARY)


def _run(command: tuple[str, ...], verbose: bool) -> None:
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


@cache
def _version(compiler: str) -> str:
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} does not run ({error}).") from error
    return done.stdout.strip() or done.stderr.strip() or "unknown version"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock; the system lets go of it when the process ends, however it ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build ahead of time, showing every command; 1 when that fails."""
    try:
        library = build(again=True, verbose=True)
    except BuildError as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    print(f"built {library}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
