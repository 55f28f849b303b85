"""Compilers, target GPU architectures, and the compile command of every source file.

Files below csrc/cuda are compiled by nvcc, all others by the C++ compiler. GPU architectures have
nvcc's names: sm_90 is machine code for compute capability 9.0, compute_90 is PTX that the driver
compiles for that capability and every later one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cuda_ext import installed

SOURCES = Path(__file__).parent / "csrc"
TORCH_TARGET = (2, 10)  # the oldest torch whose stable ABI the library uses
HOST = ("-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# Instruction sets are selected at run time: only these files may be compiled for them.
X86_FLAGS = {
    "cpu/avx2.cpp": AVX2,
    "cpu/avx2_codes.cpp": AVX2,
    "cpu/avx2_fixed.cpp": AVX2,
    "cpu/avx512.cpp": AVX512,
    "cpu/avx512_codes.cpp": AVX512,
    "cpu/avx512_fixed.cpp": AVX512,
    "cpu/avx512vnni_fixed.cpp": (*AVX512, "-mavx512vnni", "-mavx512vbmi2"),
}
# Targets of `python -m cuda_ext.build`; the PTX is for later architectures.
ALL_ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "compute_90")
OVERLAPPING = (9, 0)  # from here on a kernel may start before its predecessor ends
OLDEST_CAPABILITY = (8, 0)  # the kernels need asynchronous copies and bfloat16 tensor cores
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")

Capability = tuple[int, int]


class BuildError(RuntimeError):
    """The library cannot be built or loaded here; the message says why and what to do."""


@dataclass(frozen=True)
class Unit:
    """One source file (relative to csrc) and its compile command without the output."""

    source: str
    command: tuple[str, ...]


def find_compiler() -> str:
    """Return the C++ compiler: $CXX, or the first of g++, clang++ and c++; raises BuildError."""
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


def find_nvcc() -> str:
    """Return nvcc: $NVCC, or the one in CUDA_HOME, PATH or /usr/local/cuda; raises BuildError."""
    if named := os.environ.get("NVCC"):
        found = shutil.which(named)
        if found is None:
            raise BuildError(f"NVCC={named} is not a program here; correct it or unset it.")
        return found
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [f"{home}/bin/nvcc"] if home else []
    for place in (*places, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if found := shutil.which(place):
            return found
    raise BuildError(
        "no nvcc: CUDA_HOME, PATH and /usr/local/cuda have none; install the CUDA toolkit, 12.0 or "
        "newer, or set NVCC."
    )


@cache
def version(compiler: str) -> str:
    """Return the version text of a compiler; BuildError if it does not run."""
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} does not run ({error}).") from error
    return done.stdout.strip() or done.stderr.strip() or "unknown version"


def short_version(compiler: str) -> str:
    """Return the line of `version` with the release: the first, or nvcc's "release" line."""
    lines = version(compiler).splitlines()
    return next((line for line in lines if "release" in line), lines[0]).strip()


def driver() -> str | None:
    """Return the CUDA version of the NVIDIA driver, "13.0"; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    found = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(found)) != 0:
        return None
    return f"{found.value // 1000}.{found.value % 1000 // 10}"


def visible_capabilities() -> tuple[Capability, ...]:
    """Return the distinct compute capabilities of the GPUs that PyTorch sees, in order."""
    if installed.torch_cuda() is None or driver() is None:  # without importing torch
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    return tuple(sorted({torch.cuda.get_device_capability(index) for index in range(count)}))


def requested_architectures() -> tuple[str, ...] | None:
    """Return the architectures of BITSWEEP_CUDA_ARCHS, () for "none"; None if it is not set.

    Raises BuildError for a name that is not one of nvcc's.
    """
    text = os.environ.get("BITSWEEP_CUDA_ARCHS", "").strip()
    if not text:
        return None
    if text == "none":
        return ()
    names = [name for name in re.split(r"[\s,;]+", text) if name]
    for name in names:
        if not ARCHITECTURE.fullmatch(name):
            raise BuildError(
                f"BITSWEEP_CUDA_ARCHS={text}: {name!r} is not an architecture; write sm_90 "
                "(machine code), compute_90 (PTX), several with commas, or none."
            )
    return tuple(sorted(set(names), key=_order))


def architectures_for(capabilities: Sequence[Capability], nvcc: str) -> tuple[str, ...]:
    """Return the architectures to compile for these GPUs, without those that are too old.

    A GPU newer than nvcc gets the newest PTX that this nvcc supports.
    """
    known = _listed(nvcc, "--list-gpu-code")
    virtual = {capability_of(name): name for name in _listed(nvcc, "--list-gpu-arch")}
    found = set()
    for capability in capabilities:
        machine_code = f"sm_{capability[0]}{capability[1]}"
        older = [other for other in virtual if other <= capability]
        if capability < OLDEST_CAPABILITY or not (machine_code in known or older):
            continue
        found.add(machine_code if machine_code in known else virtual[max(older)])
    return tuple(sorted(found, key=_order))


def covers(architectures: Sequence[str], capability: Capability) -> bool:
    """Whether code for these architectures runs on a GPU of this capability.

    Machine code runs on later minor versions of its major version, PTX on every later version, and
    architecture-specific code (sm_90a) only on its own. PTX older than 9.0 does not count for GPUs
    from 9.0 on: kernels overlap there, and only code compiled for 9.0 or later waits correctly.
    """
    for name in architectures:
        own, kind, suffix = capability_of(name), name.partition("_")[0], name[-1] in "af"
        if kind == "sm":
            near = own[0] == capability[0]
        else:
            near = (own >= OVERLAPPING) == (capability >= OVERLAPPING)
        if own == capability or (not suffix and near and own <= capability):
            return True
    return False


def capability_of(architecture: str) -> Capability:
    """Return (9, 0) for sm_90, sm_90a and compute_90; ValueError for other names."""
    matched = ARCHITECTURE.fullmatch(architecture)
    if matched is None:
        raise ValueError(f"{architecture!r} is not an architecture; expected sm_90 or compute_90.")
    return int(matched[2]), int(matched[3])


def for_gpu(source: str) -> bool:
    """Whether nvcc compiles this source file, named relative to csrc."""
    return source.startswith("cuda/")


def units(compiler: str, nvcc: str | None, architectures: Sequence[str]) -> list[Unit]:
    """Return the units to compile, in a fixed order; without architectures only the CPU part."""
    include = ("-isystem", str(installed.torch_folder() / "include"))
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    found = []
    for path in sorted(SOURCES.rglob("*.c[pu]*")):
        name = path.relative_to(SOURCES).as_posix()
        if path.suffix not in (".cpp", ".cu") or (for_gpu(name) and not architectures):
            continue
        if for_gpu(name):
            command = (str(nvcc), *nvcc_flags(compiler, architectures))
        else:
            command = (compiler, *_common(), *HOST, *(X86_FLAGS.get(name, ()) if x86 else ()))
        found.append(Unit(name, (*command, *include)))
    return found


def nvcc_flags(compiler: str, architectures: Sequence[str]) -> tuple[str, ...]:
    """Return nvcc's flags; the host part is compiled by the same C++ compiler."""
    code = []
    for name in architectures:
        kind, _, number = name.partition("_")
        code += ["-gencode", f"arch=compute_{number},code={kind}_{number}"]
    host = ",".join(HOST)
    return (*_common(), "-ccbin", compiler, "-Xcompiler", host, "-lineinfo", *code)


def link_command(
    compiler: str, nvcc: str | None, architectures: Sequence[str], objects: Sequence[str]
) -> tuple[str, ...]:
    """Return the command that links the library, without the output."""
    libraries = installed.torch_folder() / "lib"
    # torch is already loaded in the process, so its libraries are found by name, without a path.
    # The library calls nothing in libtorch, but in a CUDA build libtorch depends on libtorch_cuda,
    # which has the symbol of the current stream; the linker must not drop it as unneeded.
    torch_libraries = (f"-L{libraries}", "-ltorch", "-ltorch_cpu", "-lc10")
    if not architectures:
        return (compiler, "-shared", *objects, "-Wl,--no-as-needed", *torch_libraries)
    # The CUDA runtime is linked statically, so that machines without a GPU need no CUDA library.
    # Its symbols are hidden, because torch's own copy of the runtime would replace them.
    words = ("-Xlinker", "--no-as-needed", "-Xlinker", "--exclude-libs=ALL")
    start = (str(nvcc), "-shared", "-cudart=static", "-ccbin", compiler)
    return (*start, *objects, *words, *torch_libraries)


def _common() -> tuple[str, ...]:
    major, minor = TORCH_TARGET
    return (
        "-std=c++20",
        "-O3",
        f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000ULL",
        # The ABI of every torch for Linux from TORCH_TARGET on. Only C functions cross it.
        "-D_GLIBCXX_USE_CXX11_ABI=1",
    )


@cache
def _listed(nvcc: str, option: str) -> frozenset[str]:
    done = subprocess.run([nvcc, option], capture_output=True, text=True, timeout=60)
    return frozenset(name for name in done.stdout.split() if ARCHITECTURE.fullmatch(name))


def _order(name: str) -> tuple[bool, Capability, str]:
    return name.startswith("compute"), capability_of(name), name
