"""The cost of writing a block, and the gain from writing it in a thread.

  python -m benchmarks.packing

Layers: 4 bits in groups of 128, packed, hashed and written by one thread; minimum of CPU seconds
over several rounds. Runs: whole quantizations with and without the thread, in turn in this process,
with all threads of torch; minimum of wall seconds over several rounds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import torch

from benchmarks import scaling_time
from benchmarks.scaling import make_checkpoint
from benchmarks.scaling_time import BATCH_TOKENS, Case
from harness.records import environment
from quant.calibrate.sink import WriteBehind
from quant.checkpoint.folder import sha256, sync
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.checkpoint.tensors import write_shard
from quant.checkpoint.writer import quantized
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Solver
from quant.weight import QuantizedWeight

SCHEME = Scheme(4, 128)
WIDTHS, ROUNDS = (1024, 4096, 12288), 5
RUNS = ((gptq.SOLVER, Case(512, 512, 8, 1024)), (rtn.SOLVER, Case(1024, 1024, 6, 512)))


def main() -> None:
    cpu, threads = environment.machine()["cpu"], torch.get_num_threads()
    print(f"{cpu}, {threads} threads, torch {torch.__version__}\n")
    print("| layer | weights packed, hashed, written a second | CPU s |\n|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        for width in WIDTHS:
            spent = layer_seconds(Path(folder) / "layer.safetensors", width)
            print(f"| {width} x {width} | {width**2 / spent:.3g} | {spent:.3f} |")
        torch.set_num_threads(threads)
        print("\n| method | width | blocks | s, written by the run | s, by a thread | ratio |")
        print("|---|---:|---:|---:|---:|---:|")
        for solver, case in RUNS:
            own, behind = run_seconds(Path(folder) / solver.name, solver, case)
            print(
                f"| {solver.name} | {case.width} | {case.blocks} | {own:.3f} | {behind:.3f} | "
                f"{own / behind:.2f} |"
            )


def layer_seconds(path: Path, width: int) -> float:
    """CPU seconds of this thread for one layer of random codes."""
    codes = torch.randint(0, 16, (width, width), dtype=torch.uint8)
    groups = width // 128
    zero = torch.full((width, groups), 8, dtype=torch.uint8)
    weight = QuantizedWeight(codes, SCHEME, scale=torch.rand(width, groups).half(), zero=zero)
    found = []
    for _ in range(ROUNDS):
        begin = time.thread_time()
        write_shard(path, quantized({"layer": weight}))
        sync(path)
        sha256(path)
        found.append(time.thread_time() - begin)
    return min(found)


def run_seconds(folder: Path, solver: Solver, case: Case) -> tuple[float, float]:
    """Wall seconds of a quantization that writes by itself, and of one with a writer thread."""
    make_checkpoint(folder / "model", case)
    config = QuantizationConfig(solver, SCHEME, batch_tokens=BATCH_TOKENS)
    windows = scaling_time.calibration(case) if solver.needs_calibration else []

    def once(how: AbstractContextManager[object]) -> float:
        begin = time.perf_counter()
        with how, CheckpointSource(folder / "model", torch.float32) as source:
            target, method = folder / "artifact", {"name": solver.name}
            quantize_to(target, source, windows, config, model_hash="", method=method)
        return time.perf_counter() - begin

    def inline(_: WriteBehind, write: Callable[[], None]) -> None:
        write()

    found = [
        (once(mock.patch.object(WriteBehind, "begin", inline)), once(nullcontext()))
        for _ in range(ROUNDS)
    ]
    return min(own for own, _ in found), min(behind for _, behind in found)


if __name__ == "__main__":
    main()
