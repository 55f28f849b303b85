"""Quantize in a process of its own and measure its memory there.

In the process of the tests what earlier ones freed would be taken again and show as nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from quant.calibrate.cost import _resident_bytes
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.memory.heaps import keep_freed_memory, trim_heap
from quant.memory.limits import Limits
from quant.memory.plan import IN_HOST, MemoryPlan, plan_quantization
from quant.memory.shapes import ModelShape, model_shape
from tests.quant.killing import CONTEXT

REPEATS = 2


@dataclass(frozen=True)
class Measured:
    """Bytes above what the process held before; `stages` are sampled every 10 ms.

    grown  by how much REPEATS more runs raised what the process held after the first.
    """

    shape: ModelShape
    plan: MemoryPlan
    peak: int
    grown: int
    stages: dict[str, int]

    @property
    def planned(self) -> int:
        return self.plan.needed(IN_HOST)


def measure(
    model: Path, config: QuantizationConfig, windows: list[torch.Tensor]
) -> Measured | None:
    """Quantize the folder `model`; None where the C library does not do as it is asked."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_measure, args=(there, model, config, windows))
    process.start()
    there.close()
    found = here.recv()
    process.join(60)
    assert process.exitcode == 0
    return found


def _measure(
    results: Connection, model: Path, config: QuantizationConfig, windows: list[torch.Tensor]
) -> None:
    torch.set_num_threads(1)
    if not keep_freed_memory():
        results.send(None)
        return
    with tempfile.TemporaryDirectory() as folder:
        _quantize(model, Path(folder) / "warm", config, windows)  # libraries take memory once
        trim_heap()
        before = _resident_bytes()
        forget_peak()
        stages = _quantize(model, Path(folder) / "measured", config, windows)
        top = _high_water_bytes()
        after = _resident_bytes()
        for turn in range(REPEATS):
            _quantize(model, Path(folder) / f"again-{turn}", config, windows)
        later = _resident_bytes()
    with CheckpointSource(model, torch.float32) as source:
        shape = model_shape(source.model)
    tokens, window = sum(map(len, windows)), max(map(len, windows))
    planned = plan_quantization(shape, config, tokens, window, Limits(), "cpu")
    above = {name: peak - before for name, peak in stages.items()}
    results.send(Measured(shape, planned, top - before, later - after, above))


def _quantize(
    model: Path, target: Path, config: QuantizationConfig, windows: list[torch.Tensor]
) -> dict[str, int]:
    with CheckpointSource(model, torch.float32) as source:
        result = quantize_to(
            target, source, windows, config, model_hash="m", method={"name": config.solver.name}
        )
    return {stage.name: stage.peak_bytes or 0 for stage in result.stages}


def forget_peak() -> None:
    """Let the kernel's high-water mark of this process begin anew (see proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _high_water_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
