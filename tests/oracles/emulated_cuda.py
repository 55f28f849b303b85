"""The CUDA kernels on the CPU: csrc/cuda compiled by g++ for the emulator, called by ctypes.

tests/cuda_ext/emulator/emulator.h says what the emulator does and notices.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cuda_ext.tiles import tile_codes, tile_grid, units_for

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "cuda_ext" / "csrc"
EMULATOR = ROOT / "tests" / "cuda_ext" / "emulator"
# A jump between the stacks of two threads is what glibc's fortified longjmp takes for a mistake.
FLAGS = (
    "-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w",
    "-DBITSWEEP_EMULATE", "-I", str(EMULATOR), "-x", "c++",
)  # fmt: skip
STORAGE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@dataclass(frozen=True)
class Device:
    """Multiprocessors, and bytes of shared memory that a block may have and that there are."""

    multiprocessors: int
    block_shared: int
    shared: int


H200 = Device(132, 227 << 10, 228 << 10)
A100 = Device(108, 163 << 10, 164 << 10)
A10 = Device(72, 99 << 10, 100 << 10)


class EmulatedError(RuntimeError):
    """A launch that the emulator ended, or an error code of the kernels' host side."""


class _Layer(ctypes.Structure):
    _fields_ = (
        ("bits", ctypes.c_int32),
        ("scale_storage", ctypes.c_int32),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("tiles", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("negative", ctypes.c_void_p),
    )


class Shape(ctypes.Structure):
    """What plan.h decided for the first pass of a product."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "tokens", "row_warps", "rows", "row_blocks", "k_steps", "blocks", "split", "depth",
            "resident", "shared_bytes",
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One layer: codes uint8 [out, in], scales, zeros or negative [groups, out]."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    negative: Tensor | None
    bits: int
    group_size: int

    def exact(self) -> Tensor:
        """The weight [out, in] in float64."""
        group = torch.arange(self.codes.shape[1]) // self.group_size
        scales = self.scales.double()[group].t()
        if self.zeros is not None:
            return scales * (self.codes.double() - self.zeros.double()[group].t())
        assert self.negative is not None
        levels = torch.where(self.codes == 2, scales, torch.zeros(()))
        return torch.where(self.codes == 0, -self.negative.double()[group].t(), levels)


def random_layer(
    bits: int,
    inputs: int,
    outputs: int,
    group: int | None,
    *,
    ternary: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> Layer:
    """Random codes and zero-points of the whole range, scales between 0.1 and 1.1."""
    generator = torch.Generator().manual_seed(bits * inputs + outputs)
    size = group or inputs
    grid, top = (-(-inputs // size), outputs), 3 if ternary else 2**bits
    codes = torch.randint(0, top, (outputs, inputs), dtype=torch.uint8, generator=generator)
    scales = (torch.rand(grid, generator=generator) + 0.1).to(scale_dtype)
    zeros = torch.randint(0, top, grid, dtype=torch.uint8, generator=generator)
    negative = (torch.rand(grid, generator=generator) + 0.1).to(scale_dtype)
    if ternary:
        return Layer(codes, scales, None, negative, bits, size)
    return Layer(codes, scales, zeros, None, bits, size)


@functools.cache
def library() -> ctypes.CDLL:
    """The emulated kernels, compiled if these sources have not been before."""
    # column_loop.cu registers itself with torch, whose headers the emulator does without: see
    # test_column_loop_on_host.py.
    kernels = (path for path in (KERNELS / "cuda").glob("*.cu") if path.name != "column_loop.cu")
    sources = sorted((*kernels, *EMULATOR.glob("*.cpp")))
    headers = sorted(
        path
        for folder in (KERNELS / "cuda", KERNELS / "shared", EMULATOR)
        for path in (*folder.glob("*.h"), *folder.glob("*.cuh"))
    )
    digest = hashlib.sha256(repr(FLAGS[:6]).encode())
    for path in (*sources, *headers):
        digest.update(path.name.encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"bitsweep-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    made = folder / f"{digest.hexdigest()[:16]}.so"
    if not made.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(sources, Path(scratch), made)
    loaded = ctypes.CDLL(str(made))
    loaded.last_error.restype = ctypes.c_char_p
    loaded.launches.restype = ctypes.c_int64
    return loaded


def _compile(sources: list[Path], scratch: Path, made: Path) -> None:
    objects = [str(scratch / f"{path.name}.o") for path in sources]
    commands = [
        ["g++", *FLAGS, "-c", str(path), "-o", target]
        for path, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done in pool.map(lambda c: subprocess.run(c, capture_output=True, text=True), commands):
            assert done.returncode == 0, done.stderr
    unfinished = scratch / "library.so"
    subprocess.run(["g++", "-shared", *objects, "-o", str(unfinished)], check=True)
    os.replace(unfinished, made)


def use_device(device: Device, order: int = 0) -> None:
    """The device of the next launches; threads run forwards (0), backwards (1) or shuffled."""
    library().use_device(
        device.multiprocessors, device.block_shared, device.shared, ctypes.c_uint64(order),
    )  # fmt: skip


def launches() -> int:
    """Kernels launched since `use_device`."""
    return library().launches()


def _check(code: int) -> None:
    if code:
        raise EmulatedError(f"error {code}: {library().last_error().decode()}")


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Packed:
    """A layer's buffers in the kernel layout; keeps them alive while C reads them."""

    def __init__(self, layer: Layer) -> None:
        grids = (layer.scales, layer.zeros, layer.negative)
        self.grids = [None if part is None else tile_grid(part) for part in grids]
        self.tiles = tile_codes(layer.codes, layer.bits)
        self.outputs, self.inputs = layer.codes.shape
        self.raw = _Layer(
            layer.bits, STORAGE[layer.scales.dtype], self.inputs, self.outputs, layer.group_size,
            self.tiles.data_ptr(), *map(_pointer, self.grids),
        )  # fmt: skip

    def plan(self, batch: int) -> Shape:
        """The plan of a product on the current device."""
        shape = Shape()
        raw, size = ctypes.byref(self.raw), ctypes.c_int64(batch)
        _check(library().plan(raw, size, ctypes.byref(shape)))
        return shape

    def linear(self, x: Tensor, bias: Tensor | None = None, *, shift: int = 0) -> Tensor:
        """x [batch, in] times the weight, plus bias: [batch, out], NaN where nothing is written.

        shift is how many values x begins before an address that is a multiple of 16 (and ends
        before the guard page).
        """
        y = torch.empty(x.shape[0], self.outputs, dtype=x.dtype)
        code = library().linear(
            ctypes.byref(self.raw), ctypes.c_void_p(x.contiguous().data_ptr()), STORAGE[x.dtype],
            ctypes.c_int64(x.shape[0]), ctypes.c_int64(shift), ctypes.c_void_p(_pointer(bias)),
            0 if bias is None else STORAGE[bias.dtype], ctypes.c_void_p(y.data_ptr()),
        )  # fmt: skip
        _check(code)
        return y

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in]."""
        out = torch.empty(self.outputs, self.inputs, dtype=dtype)
        target = ctypes.c_void_p(out.data_ptr())
        _check(library().dequantize(ctypes.byref(self.raw), STORAGE[dtype], target))
        return out


def repack(qweight: Tensor, bits: int, inputs: int) -> Tensor:
    """int32 tiles of GPTQ words [ceil(inputs * bits / 32), outputs]."""
    outputs = qweight.shape[1]
    tiles = torch.empty(-(-outputs // 8), units_for(inputs, bits), 8, 16, dtype=torch.int32)
    code = library().repack(
        ctypes.c_void_p(qweight.data_ptr()), bits, ctypes.c_int64(inputs),
        ctypes.c_int64(outputs), ctypes.c_void_p(tiles.data_ptr()),
    )  # fmt: skip
    _check(code)
    return tiles


def run_defect(kind: int, values: Tensor) -> Tensor:
    """What kernel `kind` of emulator/defects.cpp makes of 256 floats."""
    out = torch.empty(256)
    source, target = ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(out.data_ptr())
    _check(library().run_defect(kind, source, target))
    return out
