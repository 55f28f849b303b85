"""Compare the contenders for one shape and batch size, with the bandwidth of the same rounds."""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cuda_ext import packed
from cuda_ext.bench.products import (
    contenders,
    full_precision_name,
    isa_contenders,
    readers,
)
from cuda_ext.bench.shapes import sizes
from cuda_ext.bench.timing import Contender, last_level_cache, measure

SMI_FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")


@dataclass(frozen=True)
class Row:
    """Milliseconds of one contender (median, 10th and 90th percentile) and derived figures.

    share is relative to the read bandwidth measured in the same rounds. speedup is relative to full
    precision (float32 on the CPU, float16 on CUDA), the median of the ratios of each round.
    """

    shape: str
    batch: int
    name: str
    ms: float
    p10_ms: float
    p90_ms: float
    gb_per_s: float
    share: float
    speedup: float


def bench(
    shape: str | tuple[int, int],
    batch: int,
    *,
    group: int,
    bits: Sequence[int],
    seconds: float,
    device: str = "cpu",
    by_isa: bool = False,
) -> tuple[list[Row], float]:
    """Return the rows of one shape and batch size, and the read bandwidth in GB/s.

    shape is a name that shapes.sizes knows, or (inputs, outputs); device is "cpu" or "cuda"; by_isa
    compares the instruction sets of the CPU instead.
    """
    inputs, outputs = sizes(shape) if isinstance(shape, str) else shape
    name = shape if isinstance(shape, str) else f"{inputs}x{outputs}"
    if by_isa:
        rivals = isa_contenders(inputs, outputs, batch, group, bits)
    else:
        rivals = contenders(inputs, outputs, batch, group, bits, device)
    reading = readers(device)
    times = measure([*reading, *rivals], seconds, device)
    baseline = full_precision_name(device)
    # Bandwidth is the best turn of torch's reads: a sum, a copy, or the full-precision product.
    known = [*reading, *(rival for rival in rivals if rival.name == baseline)]
    bandwidth = max(r.bytes / min(times[r.name]) / 1e6 for r in known)
    rows = [
        _row(name, batch, rival, times[rival.name], times[baseline], bandwidth) for rival in rivals
    ]
    return rows, bandwidth


def _row(
    shape: str,
    batch: int,
    rival: Contender,
    values: Sequence[float],
    baseline: Sequence[float],
    bandwidth: float,
) -> Row:
    ms, tenths = statistics.median(values), statistics.quantiles(values, n=10)
    rate = rival.bytes / ms / 1e6
    ratio = statistics.median(a / b for a, b in zip(baseline, values, strict=True))
    return Row(shape, batch, rival.name, ms, tenths[0], tenths[-1], rate, rate / bandwidth, ratio)


def machine(device: str) -> dict[str, Any]:
    """Return what a table needs to be interpreted: processor, caches, versions; no host name."""
    found: dict[str, Any] = {"device": device, "torch": torch.__version__}
    if device == "cpu":
        name = platform.processor() or platform.machine()
        found |= {"isa": packed.cpu_isa(), "threads": torch.get_num_threads(), "machine": name}
    else:
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "machine": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": (_smi("driver_version") or ["unknown"])[0],
        }
    return found | {"last_level_cache": last_level_cache(device)}


def clocks() -> dict[str, str]:
    """Return clocks, temperature and power of the first GPU from nvidia-smi; {} without it."""
    values = _smi(",".join(SMI_FIELDS))
    return dict(zip(SMI_FIELDS, values, strict=False))


def _smi(fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if done.returncode else [part.strip() for part in done.stdout.split(",")]
