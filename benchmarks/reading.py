"""Reading a quantized checkpoint layer by layer, against plain reading of its base and of the disk.

In the page cache, by processor time of one thread, five plain readings end as ours does, with the
same weights as float32 in memory of their own: a float32 base that safetensors maps and torch
copies, that safetensors reads without mapping, the same in large pages (TensorReader.read), and
bases of 16 bits that are widened. Held to GOAL is the fastest with a float32 base. From the disk,
by the clock and with all threads, bytes of the quantized files are counted, against reading the
same files in blocks and doing nothing with them. Ours is what the audit and load_weights do: files
that are not mapped, read_weight, dequantize.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.scaling import make_checkpoint
from benchmarks.scaling_time import Case
from quant.checkpoint.export import export
from quant.checkpoint.layers import quantized_layers, read_weight
from quant.checkpoint.loader import read_format
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.checkpoint.tensors import TensorReader
from quant.config import QuantizationConfig
from quant.memory.heaps import keep_freed_memory
from quant.scheme import Scheme
from quant.solvers import rtn

CASE = Case(1024, 1024, 16, 512)  # 92 million weights in layers of 1024 x 1024 and 256 x 1024
LARGE = Case(4096, 11008, 1, 512)  # 177 million, in layers as those of 7 billion parameters
ROUNDS, COLD_ROUNDS, GOAL = 7, 5, 0.8
SCHEMES = (Scheme(4, 128), Scheme(3, 128))
FORMATS = ("gptq-v2", "compressed-tensors", "awq")
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
BLOCK = 1 << 22  # bytes that are read from the disk at once
LARGE_PAGES = "float32 in large pages"
NOT_MAPPED = "float32, not mapped"

Run = Callable[[], None]


def reading() -> None:
    """Weights a second of quantized files in the cache, and bytes a second from the disk."""
    keep_freed_memory()  # as in a cell
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as place:
        for case, schemes in ((CASE, SCHEMES), (LARGE, SCHEMES[:1])):
            room = Path(place) / str(case.width)
            bases = _bases(room, case)
            for scheme in schemes:
                folders = _quantized(room / scheme.name, bases["float32"], scheme)
                torch.set_num_threads(1)
                try:
                    _in_the_cache(f"{scheme.name}, width {case.width}", bases, folders)
                finally:
                    torch.set_num_threads(threads)
                _from_the_disk(folders)


def _bases(room: Path, case: Case) -> dict[str, Path]:
    """One model in three types."""
    found = {name: room / name for name in ("float32", *HALVES)}
    make_checkpoint(found["float32"], case)
    for name, dtype in HALVES.items():
        found[name].mkdir()
        for file in sorted(found["float32"].glob("*.safetensors")):
            tensors = {key: part.to(dtype) for key, part in load_file(file).items()}
            save_file(tensors, found[name] / file.name)
    return found


def _quantized(room: Path, base: Path, scheme: Scheme) -> dict[str, Path]:
    own = room / "bitsweep"
    with CheckpointSource(base, torch.float32) as source:
        config = QuantizationConfig(rtn.SOLVER, scheme)
        quantize_to(own, source, [], config, model_hash="", method={"name": "rtn"})
    folders = {"bitsweep": own}
    for name in FORMATS:
        if name != "awq" or scheme.bits == 4:
            folders[name] = export(own, room / name, name).folder
    return folders


def _in_the_cache(what: str, bases: dict[str, Path], folders: dict[str, Path]) -> None:
    layers = _layers(folders["bitsweep"])
    runs: dict[str, Run] = {name: partial(_plain, path, layers) for name, path in bases.items()}
    runs[LARGE_PAGES] = partial(_copied, bases["float32"], layers)
    runs[NOT_MAPPED] = partial(_not_mapped, bases["float32"], layers)
    plain = list(runs)
    runs |= {name: partial(_dequantized, folder) for name, folder in folders.items()}
    seconds = _in_turn(runs, ROUNDS, time.process_time)
    weights = sum(layers.values())
    print(
        f"{what}, {weights / 1e6:.0f} M weights in the cache, one thread, {ROUNDS} rounds in turn; "
        f"load {os.getloadavg()[0]:.1f}; M weights/s, and their share of those of"
    )
    print(f"  {'':<28}{'':>6}" + "".join(f"{name:>24}" for name in plain))
    for name in runs:
        rate = weights / statistics.median(seconds[name]) / 1e6
        shares = "".join(f"{_share(seconds[other], seconds[name]):>24}" for other in plain)
        print(f"  {name:<28}{rate:6.0f}{shares}", flush=True)
    best = min(("float32", LARGE_PAGES, NOT_MAPPED), key=lambda name: min(seconds[name]))
    for name in folders:
        found = statistics.median(seconds[best]) / statistics.median(seconds[name])
        print(f"  {name}: {found:.0%} of {best}; goal {GOAL:.0%}", flush=True)


def _from_the_disk(folders: dict[str, Path]) -> None:
    runs: dict[str, Run] = {}
    for name, folder in folders.items():
        runs[f"{name}, blocks"] = partial(_blocks, folder)
        runs[name] = partial(_dequantized, folder)
    seconds = _in_turn(runs, COLD_ROUNDS, time.perf_counter, before=partial(_forget, folders))
    print(
        f"  from the disk, {torch.get_num_threads()} threads, {COLD_ROUNDS} rounds in turn; load "
        f"{os.getloadavg()[0]:.1f}; MB/s of the files, and their share of reading blocks"
    )
    for name, folder in folders.items():
        size = sum(file.stat().st_size for file in _files(folder)) / 1e6
        rates = [size / statistics.median(seconds[run]) for run in (name, f"{name}, blocks")]
        share = _share(seconds[f"{name}, blocks"], seconds[name])
        print(f"  {name:<24}{rates[0]:6.0f} of {rates[1]:6.0f}{share:>24}", flush=True)


def _in_turn(
    runs: dict[str, Run], rounds: int, clock: Callable[[], float], before: Run | None = None
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if before is not None:
                before()
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def _share(theirs: list[float], ours: list[float]) -> str:
    found = [one / other for one, other in zip(theirs, ours, strict=True)]
    return f"{statistics.median(found):.0%} [{min(found):.0%}, {max(found):.0%}]"


def _layers(folder: Path) -> dict[str, int]:
    """Weights of every quantized layer."""
    checkpoint = read_format(folder, verify_files=False)
    with TensorReader(folder) as reader:
        found = quantized_layers(reader, checkpoint).items()
        return {
            layer: math.prod(read_weight(reader, checkpoint, layer, parts).shape)
            for layer, parts in found
        }


def _plain(folder: Path, layers: dict[str, int]) -> None:
    """Read weights by safetensors alone, each as float32 in memory of its own."""
    for file in _files(folder):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                if name.removesuffix(".weight") in layers:
                    opened.get_tensor(name).to(torch.float32, copy=True)


def _copied(folder: Path, layers: dict[str, int]) -> None:
    with TensorReader(folder) as reader:
        for layer in layers:
            reader.read(f"{layer}.weight")


def _not_mapped(folder: Path, layers: dict[str, int]) -> None:
    """As `_plain`, by reads into the memory of the tensors: no copy follows."""
    for file in _files(folder):
        with safe_open(file, "pt", backend="pread") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                if name.removesuffix(".weight") in layers:
                    opened.get_tensor(name)


def _dequantized(folder: Path) -> None:
    checkpoint = read_format(folder, verify_files=False)
    with TensorReader(folder, mapped=False) as reader:
        for layer, parts in quantized_layers(reader, checkpoint).items():
            read_weight(reader, checkpoint, layer, parts).dequantize()


def _blocks(folder: Path) -> None:
    memory = bytearray(BLOCK)
    for file in _files(folder):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(memory):
                pass


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _forget(folders: dict[str, Path]) -> None:
    """Drop the files out of the page cache."""
    for folder in folders.values():
        for file in _files(folder):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
