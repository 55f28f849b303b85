"""Build the shared library of the operators once, cache it, and report why it cannot be built.

`python -m cuda_ext.build` builds ahead of time (for a cluster, or to see compiler messages), with
CUDA for every supported architecture if nvcc is installed. Otherwise the first use of a kernel
builds, with CUDA only for the visible GPUs. BITSWEEP_CUDA_ARCHS selects other architectures, or
"none". The library uses LibTorch's stable ABI, so it works with every Python, and with every torch
from toolchain.TORCH_TARGET on.

The cache is the folder `kernels` in that of cuda_ext.cache. The name of an entry is a hash of its
inputs: the sources, the C++ compiler with its flags and torch, and nvcc with its flags and
architectures. An existing library is used if it was made from the same sources by the same
compilers and has code for the visible GPUs. Libraries for different GPUs share the objects of the
C++ sources. A compiler that is not installed is ignored: a library
built on another machine of the cluster is used. build.json has the size and sha256 of the library;
an entry that does not match it is built again and never loaded, because loading a truncated library
kills the process.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cuda_ext import installed, objects, proven, toolchain
from cuda_ext.cache import cache_root, remove_killed_builds, replace_durably, write_atomically
from cuda_ext.toolchain import BuildError, Capability, Unit

LIBRARY = "libbitsweep_kernels.so"
HEADERS = (".h", ".cuh")

_log = logging.getLogger("cuda_ext")


@dataclass(frozen=True)
class Library:
    """A built library: its path, its GPU architectures, and if it has none, why."""

    path: Path
    architectures: tuple[str, ...]
    without_cuda: str | None


@dataclass(frozen=True)
class Tools:
    """Compilers and GPU architectures of a build; no architectures means the CPU part only."""

    compiler: str
    nvcc: str | None
    architectures: tuple[str, ...]
    without_cuda: str | None

    @property
    def units(self) -> list[Unit]:
        return toolchain.units(self.compiler, self.nvcc, self.architectures)

    def folder(self) -> Path:
        """Return the cache entry of a build with these tools."""
        host = _host_key(self.compiler)
        device = "cpu"
        if self.architectures:
            command = [unit.command[1:] for unit in self.units if unit.command[0] == self.nvcc]
            device = _digest([toolchain.version(str(self.nvcc)), *map(_without_paths, command)])
        return cache_folder() / f"{sources_key()}-{host}-{device}"


@dataclass(frozen=True)
class Status:
    """State for `bitsweep doctor`: the library, or why there is none, and the compilers.

    compiler and nvcc are the program with its version, or the reason why it is missing.
    """

    library: Library | None
    reason: str
    compiler: str
    nvcc: str
    cache: Path


def cache_folder() -> Path:
    """Return the folder of built libraries."""
    return cache_root() / "kernels"


def sources_key() -> str:
    """Return twelve hexadecimal digits of the hash of all source files and headers."""
    parts = []
    for path in sorted(toolchain.SOURCES.rglob("*")):
        if path.suffix in (".cpp", ".cu", *HEADERS):
            parts.append(path.relative_to(toolchain.SOURCES).as_posix())
            parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return _digest(parts)


def first_use_tools() -> Tools:
    """Return the tools of a first-use build: CUDA for visible GPUs; BuildError without C++."""
    compiler, requested = toolchain.find_compiler(), toolchain.requested_architectures()
    seen = toolchain.visible_capabilities()
    if requested is None and not seen:
        return Tools(compiler, None, (), "it was built where no GPU was seen.")
    return _cuda_tools(compiler, requested, seen)


def ahead_of_time_tools() -> Tools:
    """Return the tools of `python -m cuda_ext.build`: CUDA for all architectures, with nvcc."""
    compiler, requested = toolchain.find_compiler(), toolchain.requested_architectures()
    return _cuda_tools(compiler, requested or toolchain.ALL_ARCHITECTURES, ())


def _cuda_tools(
    compiler: str, requested: tuple[str, ...] | None, seen: Sequence[Capability]
) -> Tools:
    if toolchain.requested_architectures() == ():
        return Tools(compiler, None, (), "BITSWEEP_CUDA_ARCHS=none leaves it out.")
    try:
        nvcc = toolchain.find_nvcc()
    except BuildError as error:
        return Tools(compiler, None, (), str(error))
    wanted = requested or toolchain.architectures_for(seen, nvcc)
    if not wanted:
        oldest = "sm_{}{}".format(*toolchain.OLDEST_CAPABILITY)
        return Tools(compiler, None, (), f"the GPUs here are older than {oldest}.")
    return Tools(compiler, nvcc, wanted, None)


def build(tools: Tools, *, again: bool = False, verbose: bool = False) -> Library:
    """Return the library that these tools make, cached or built now; BuildError if that fails.

    Processes that call it at the same time wait for one of them to build. A failed build is not
    repeated for the same sources and compilers, unless `again`.
    """
    folder = tools.folder()
    library, failure = folder / LIBRARY, folder / "failed.txt"
    made = Library(library, tools.architectures, tools.without_cuda)
    if not again and _notes(folder) is not None:
        return made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if again:
                failure.unlink(missing_ok=True)
            elif _notes(folder) is not None:  # another process has built it
                return made
            if failure.is_file():
                raise BuildError(failure.read_text())
            _make(tools, folder, again, verbose)
    except OSError as error:
        raise BuildError(
            f"the cache {folder} cannot be written ({error}); set BITSWEEP_CACHE to a folder that "
            "can."
        ) from error
    return made


def find_or_build() -> Library:
    """Return a library for this machine, cached or built now; BuildError if that fails.

    If the CUDA part does not build, only the CPU part is built, and the library says why.
    """
    _supported()
    if found := prebuilt():
        return found
    tools = first_use_tools()
    try:
        return build(tools)
    except BuildError as error:
        if not tools.architectures:
            raise
        _log.warning("no CUDA kernels: %s", error)
        return build(Tools(tools.compiler, None, (), str(error)))


def prebuilt() -> Library | None:
    """Return the cached library with most architectures that covers every visible GPU."""
    seen = [c for c in toolchain.visible_capabilities() if c >= toolchain.OLDEST_CAPABILITY]
    requested = toolchain.requested_architectures()
    compiler, nvcc = _found(toolchain.find_compiler), _found(toolchain.find_nvcc)
    host = _host_key(compiler) if compiler else "*"
    found = []
    for folder in cache_folder().glob(f"{sources_key()}-{host}-*"):
        notes = _notes(folder)
        if notes is None:
            continue
        architectures = tuple(notes["architectures"])
        same_nvcc = not (nvcc and architectures) or notes["nvcc"] == toolchain.version(nvcc)
        # Without nvcc nothing better can be built here, so a library without CUDA is accepted.
        enough = all(toolchain.covers(architectures, c) for c in seen) or not nvcc
        if same_nvcc and (enough if requested is None else architectures == requested):
            found.append((architectures, folder / LIBRARY))
    if not found:
        return None
    architectures, path = max(found, key=lambda entry: (len(entry[0]), entry[1]))
    without = None if architectures else _why_cpu_alone()
    return Library(path, architectures, without)


def _why_cpu_alone() -> str:
    try:
        return first_use_tools().without_cuda or "it was built without CUDA."
    except BuildError as error:
        return str(error)


@cache
def load() -> Library:
    """Find or build the library and register its operators once per process; raises BuildError."""
    import torch

    library = find_or_build()
    try:
        sha256 = proven.digest(library.path)  # before loading: the file may be replaced later
        torch.ops.load_library(str(library.path))
    except OSError as error:
        raise BuildError(
            f"{library.path} cannot be loaded ({error}); build it again with `python -m "
            "cuda_ext.build`."
        ) from error
    proven.note_loaded(library.path, sha256)
    return library


def is_loaded() -> bool:
    """Whether `load` has loaded the library in this process."""
    return load.cache_info().currsize > 0


def find() -> Library | None:
    """Return the library that `load` would load, if it is built already; None if it is not.

    Raises BuildError where none can be built.
    """
    _supported()
    return prebuilt()


@cache
def loadable() -> Library:
    """Return what `load` does, but do not import torch if this library was loaded here before."""
    library = find_or_build()
    return library if proven.loaded_before(library.path) else load()


def status() -> Status:
    """Return the state for `bitsweep doctor`, without compiling anything."""
    compiler, nvcc = (_described(find) for find in (toolchain.find_compiler, toolchain.find_nvcc))
    library, folder, reason = None, cache_folder(), ""
    try:
        _supported()
        library = prebuilt()
        tools = first_use_tools()
        folder = tools.folder()
        if library is None:
            failure = folder / "failed.txt"
            reason = failure.read_text() if failure.is_file() else "not built yet; first use does."
    except BuildError as error:
        reason = str(error)
    return Status(library, reason if library is None else "", compiler, nvcc, folder)


def _make(tools: Tools, folder: Path, again: bool, verbose: bool) -> None:
    what = "CPU kernels, once for this machine: about half a minute"
    if tools.architectures:
        names = ", ".join(tools.architectures)
        what = f"CPU and CUDA kernels ({names}), once for this machine: about two minutes"
    _log.warning("building the %s", what)
    start, planned = time.monotonic(), tools.units
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        remove_killed_builds(folder, Path(scratch))
        kept = cache_folder() / "objects" / f"{sources_key()}-{_host_key(tools.compiler)}"
        try:
            made_of = objects.compile_units(
                planned, Path(scratch), kept, again=again, verbose=verbose
            )
            made = Path(scratch) / LIBRARY
            link = toolchain.link_command(tools.compiler, tools.nvcc, tools.architectures, made_of)
            objects.run((*link, "-o", str(made)), verbose)
        except BuildError as error:
            (folder / "failed.txt").write_text(str(error))
            raise
        notes = {
            "seconds": round(time.monotonic() - start, 1),
            "torch": installed.torch_version(),
            "compiler": toolchain.version(tools.compiler),
            "nvcc": toolchain.version(tools.nvcc) if tools.nvcc else None,
            "architectures": tools.architectures,
            "commands": {unit.source: shlex.join(unit.command) for unit in planned},
            "bytes": made.stat().st_size,
            "sha256": proven.digest(made),
        }
        # The library first: an entry without matching notes is built again.
        replace_durably(made, folder / LIBRARY)
        write_atomically(folder / "build.json", json.dumps(notes, indent=1) + "\n")


def _supported() -> None:
    if sys.platform != "linux":
        raise BuildError(f"the kernels are built on Linux only, and this is {sys.platform}.")
    version = installed.torch_version()
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < toolchain.TORCH_TARGET:
        raise BuildError(f"torch {version} is older than 2.10, the first with this ABI.")


def _host_key(compiler: str) -> str:
    commands = [_without_paths(unit.command[1:]) for unit in toolchain.units(compiler, None, ())]
    torch_version = ".".join(installed.torch_version().split(".")[:2])
    return _digest([toolchain.version(compiler), torch_version, *commands])


def _without_paths(command: Sequence[str]) -> str:
    # The key has the versions of torch's headers and of the compilers instead of their paths.
    return shlex.join(word for word in command if not word.startswith("/"))


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _notes(folder: Path) -> dict[str, Any] | None:
    """Return the notes of a cache entry; None if it failed, is being built or does not match."""
    try:
        notes = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        library = folder / LIBRARY
        size, sha256 = notes["bytes"], notes["sha256"]
        whole = library.stat().st_size == size and proven.digest(library) == sha256
        tuple(notes["architectures"]), notes["nvcc"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return notes if whole else None


def _found(find: Callable[[], str]) -> str | None:
    try:
        return find()
    except BuildError:
        return None


def _described(find: Callable[[], str]) -> str:
    try:
        found = find()
        return f"{found} ({toolchain.short_version(found)})"
    except BuildError as error:
        return str(error)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock; the system releases it when the process ends, however it ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] = ()) -> int:
    """Build ahead of time and show every command; return 1 if that fails."""
    argparse.ArgumentParser(
        prog="python -m cuda_ext.build",
        description="Build the kernels now, for every GPU of BITSWEEP_CUDA_ARCHS (default: all "
        "that are supported), instead of at their first use. Takes no arguments.",
    ).parse_args(arguments)
    try:
        _supported()
        library = build(ahead_of_time_tools(), again=True, verbose=True)
    except BuildError as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    names = ", ".join(library.architectures) or f"no CUDA: {library.without_cuda}"
    print(f"built {library.path} ({names})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
