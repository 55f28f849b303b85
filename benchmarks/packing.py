"""What writing a block costs, and what a run gains by leaving it to a thread.

  python -m benchmarks.packing

Layers: 4 bits in groups of 128, packed, hashed and written by one thread; CPU seconds, the least of
some rounds. Runs: whole quantizations with the thread and without, in turn in this process; wall
seconds, the least of some rounds, with as many threads as torch has.
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
from quant.calibrate.layers import QuantizationPlan
from quant.calibrate.sink import WriteBehind
from quant.checkpoint.folder import sha256, sync
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.checkpoint.tensors import write_shard
from quant.checkpoint.writer import quantized
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

SCHEME = Scheme(4, 128)
WIDTHS, ROUNDS = (1024, 4096, 12288), 5
RUNS = (("gptq", Case(512, 512, 8, 1024)), ("rtn", Case(1024, 1024, 6, 512)))


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
        for method, case in RUNS:
            own, behind = run_seconds(Path(folder) / method, method, case)
            print(
                f"| {method} | {case.width} | {case.blocks} | {own:.3f} | {behind:.3f} | "
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


def run_seconds(folder: Path, method: str, case: Case) -> tuple[float, float]:
    """Wall seconds of a whole quantization: written by the run itself, and by a thread."""
    make_checkpoint(folder / "model", case)
    plan = QuantizationPlan(method, SCHEME, batch_tokens=BATCH_TOKENS)
    windows = scaling_time.calibration(case) if method == "gptq" else []

    def once(how: AbstractContextManager[object]) -> float:
        begin = time.perf_counter()
        with how, CheckpointSource(folder / "model", torch.float32) as source:
            quantize_to(
                folder / "artifact", source, windows, plan, model_hash="", method={"name": method}
            )
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
