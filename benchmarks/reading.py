"""Reading a quantized checkpoint layer by layer, against reading its base with safetensors."""

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

from benchmarks.scaling import make_checkpoint
from benchmarks.scaling_time import Case
from quant.checkpoint.export import export
from quant.checkpoint.layers import quantized_layers, read_values, read_weight
from quant.checkpoint.loader import read_format
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.checkpoint.tensors import TensorReader
from quant.config import QuantizationConfig
from quant.memory.heaps import keep_freed_memory
from quant.scheme import Scheme
from quant.solvers import rtn

CASE = Case(1024, 1024, 16, 512)  # 143 million weights
ROUNDS, GOAL = 7, 0.8
SCHEMES = (Scheme(4, 128), Scheme(3, 128))
FORMATS = ("gptq-v2", "compressed-tensors", "awq")


def reading() -> None:
    """Processor time a weight: codes read and dequantized, and the base read as float32."""
    keep_freed_memory()  # as in a cell
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as room:
            for scheme in SCHEMES:
                _measure(Path(room) / scheme.name, scheme)
    finally:
        torch.set_num_threads(threads)


def _measure(room: Path, scheme: Scheme) -> None:
    base, own = room / "base", room / "bitsweep"
    make_checkpoint(base, CASE)
    with CheckpointSource(base, torch.float32) as source:
        config = QuantizationConfig(rtn.SOLVER, scheme)
        quantize_to(own, source, [], config, model_hash="", method={"name": "rtn"})
    folders = [own]
    for name in FORMATS:
        if name != "awq" or scheme.bits == 4:
            export(own, room / name, name)
            folders.append(room / name)
    layers = _layers(own)
    runs: dict[str, Callable[[], None]] = {"base": partial(_plain, base, layers)}
    runs |= {folder.name: partial(_dequantized, folder) for folder in folders}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    weights = sum(layers.values())
    print(f"{scheme.name}, {weights / 1e6:.0f} M weights, one thread, {ROUNDS} rounds in turn; "
          f"goal {GOAL:.0%}; load {os.getloadavg()[0]:.1f}")  # fmt: skip
    for name in runs:
        share = [theirs / ours for theirs, ours in zip(seconds["base"], seconds[name], strict=True)]
        print(
            f"  {name:<20} {weights / statistics.median(seconds[name]) / 1e6:6.0f} M weights/s, "
            f"{statistics.median(share):5.0%} [{min(share):.0%}, {max(share):.0%}] of the base's"
        )


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
    with TensorReader(folder) as reader:
        for layer in layers:
            reader.read(f"{layer}.weight")


def _dequantized(folder: Path) -> None:
    checkpoint = read_format(folder, verify_files=False)
    with TensorReader(folder) as reader:
        for layer, parts in quantized_layers(reader, checkpoint).items():
            read_values(reader, checkpoint, layer, parts)
