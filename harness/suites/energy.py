"""The energy counters of a platform: RAPL of a processor, NVML of an NVIDIA GPU.

Measured or absent: nothing is estimated from a rated power. RAPL is read through powercap of Linux
(Documentation/power/powercap), NVML through nvidia-ml-py, which need not be installed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ENERGY = "energy"  # the note of a timing that says why none was measured
POWERCAP = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:\d+")  # AMD's too; intel-rapl-mmio counts the same packages again
PART = re.compile(r"intel-rapl:\d+:\d+")
# Seconds between two updates of a counter.
RAPL_UPDATES, NVML_UPDATES = 1e-3, 0.1
LEAST_UPDATES = 10  # in a measurement, so that its ends are known to 10 %

Reading = tuple[int, ...]


@dataclass(frozen=True)
class Counter:
    """A counter of energy: read() returns units of `joules` since some time.

    wraps_at  the value after which it begins again at 0; None: it does not.
    """

    read: Callable[[], int]
    joules: float
    wraps_at: int | None = None

    def between(self, start: int, end: int) -> float:
        """Joules between two readings, between which it wrapped around at most once."""
        passed = end - start
        if passed < 0 and self.wraps_at is not None:
            passed += self.wraps_at + 1
        return passed * self.joules


@dataclass(frozen=True)
class Meter:
    """The counters of a device together.

    what     what they count, for notes: "RAPL (package-0, dram)".
    updates  seconds between two updates of a counter.
    """

    what: str
    updates: float
    counters: tuple[Counter, ...]

    def read(self) -> Reading | None:
        """The counters now; None if one cannot be read any more."""
        try:
            return tuple(counter.read() for counter in self.counters)
        except Exception:  # NVML has exceptions of its own; a lost counter costs its figure alone
            return None

    def joules(self, start: Reading | None, end: Reading | None) -> float | None:
        """Joules between two readings; None if a reading is lacking, or a counter was reset."""
        if start is None or end is None:
            return None
        parts = [
            counter.between(first, last)
            for counter, first, last in zip(self.counters, start, end, strict=True)
        ]
        return None if any(part < 0 for part in parts) else sum(parts)


def open_meter(device: str, more: Sequence[str] = ()) -> Meter | str:
    """The meter of a device (cpu, cuda, cuda:N), or the reason why there is none.

    more  further GPUs that are counted with it, those that idle meanwhile included.
    """
    if not device.startswith("cuda"):
        return rapl_meter()
    found = [gpu_meter(each) for each in (device, *more)]
    meters = [each for each in found if isinstance(each, Meter)]
    if len(meters) < len(found):
        return next(each for each in found if isinstance(each, str))
    counters = tuple(counter for each in meters for counter in each.counters)
    what = meters[0].what if not more else f"NVML (the boards of {len(found)} GPUs)"
    return Meter(what, NVML_UPDATES, counters)


def rapl_meter(root: Path = POWERCAP) -> Meter | str:
    """The packages of the machine and their memory (DRAM), or the reason why there is none."""
    zones = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    found: list[tuple[str, Counter]] = []
    for zone in zones:
        try:
            name = (zone / "name").read_text().strip()
            wanted = (PACKAGE.fullmatch(zone.name) and name.startswith("package")) or (
                PART.fullmatch(zone.name) and name == "dram"
            )
            if not wanted:  # cores are part of a package, psys holds packages
                continue
            most = int((zone / "max_energy_range_uj").read_text())
            read = partial(_number, zone / "energy_uj")
            read()
        except PermissionError:
            return (
                f"{zone}/energy_uj can be read by root alone: let root allow it, as in "
                f"`chmod a+r {root}/intel-rapl:*/energy_uj`"
            )
        except (OSError, ValueError) as error:
            return f"{zone} cannot be read ({error})"
        found.append((name, Counter(read, 1e-6, most)))
    if not found:
        return f"this machine shows no energy counters in {root}"
    names = ", ".join(name for name, _ in found)
    return Meter(f"RAPL ({names})", RAPL_UPDATES, tuple(counter for _, counter in found))


def _number(file: Path) -> int:
    return int(file.read_text())


def gpu_meter(device: str, uuid: Callable[[str], str] | None = None) -> Meter | str:
    """The whole board of a GPU, or the reason why there is none. `uuid` is for tests."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "NVML's package is not installed: pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID((uuid or _uuid)(device))
        read = partial(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        read()
    except nvml.NVMLError as error:
        return f"NVML does not give the energy of {device} ({error})"
    return Meter("NVML (the GPU's board)", NVML_UPDATES, (Counter(read, 1e-3),))


def _uuid(device: str) -> str:
    """NVML's name of a device of torch, which may number visible devices otherwise."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def why_too_short(meter: Meter, milliseconds: Sequence[float]) -> str:
    """Why measurements of these lengths have too few updates of the counters; "" if they do not."""
    shortest, least = min(milliseconds) / 1e3, LEAST_UPDATES * meter.updates
    if shortest >= least:
        return ""
    return (
        f"tokens were decoded for {shortest:.2g} s, and {meter.what} needs {least:g} s: raise "
        "suite.latency.decode_tokens"
    )
