"""Bitsweep from Python: quantize, load, export and inspect models; run sweeps, read their records.

docs/python.md explains every name. What is here is imported on first use, so that `import bitsweep`
loads neither torch nor anything else. `quantize`, `load`, `export` and `inspect` need what
`pip install bitsweep` installs; the others, and names of models and texts, `bitsweep[harness]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitsweep.quantizing import quantize as quantize
    from bitsweep.sweeps import build_report as build_report
    from bitsweep.sweeps import load_records as load_records
    from bitsweep.sweeps import run as run
    from harness.errors import BitsweepError as BitsweepError
    from harness.records.record import Record as Record
    from quant.allocation import Allocation as Allocation
    from quant.calibrate.stream import QuantizationResult as QuantizationResult
    from quant.checkpoint.export import Exported as Exported
    from quant.checkpoint.export import export as export
    from quant.checkpoint.inspection import Inspection as Inspection
    from quant.checkpoint.inspection import inspect as inspect
    from quant.checkpoint.loader import load as load
    from quant.errors import QuantizationError as QuantizationError
    from quant.errors import SchemeError as SchemeError
    from quant.scheme import Scheme as Scheme

    __version__: str

_HOME = {
    "Allocation": "quant.allocation",
    "BitsweepError": "harness.errors",
    "Exported": "quant.checkpoint.export",
    "Inspection": "quant.checkpoint.inspection",
    "QuantizationError": "quant.errors",
    "QuantizationResult": "quant.calibrate.stream",
    "Record": "harness.records.record",
    "Scheme": "quant.scheme",
    "SchemeError": "quant.errors",
    "build_report": "bitsweep.sweeps",
    "export": "quant.checkpoint.export",
    "inspect": "quant.checkpoint.inspection",
    "load": "quant.checkpoint.loader",
    "load_records": "bitsweep.sweeps",
    "quantize": "bitsweep.quantizing",
    "run": "bitsweep.sweeps",
}
_OF_THE_HARNESS = {"Record", "build_report", "load_records", "run"}

__all__ = [
    "Allocation",
    "BitsweepError",
    "Exported",
    "Inspection",
    "QuantizationError",
    "QuantizationResult",
    "Record",
    "Scheme",
    "SchemeError",
    "__version__",
    "build_report",
    "export",
    "inspect",
    "load",
    "load_records",
    "quantize",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use; a missing extra is a BitsweepError with the pip command."""
    if name == "__version__":
        from importlib.metadata import version

        return version("bitsweep")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _OF_THE_HARNESS:
        from harness.extras import require

        require("harness", f"bitsweep.{name}")
    found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
