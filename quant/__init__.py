"""Post-training quantization of language models: schemes, solvers, QuantLinear, checkpoints."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.allocation import Allocation
    from quant.calibrate.stream import QuantizationResult, quantize_model
    from quant.checkpoint.export import export
    from quant.checkpoint.loader import load, load_weights
    from quant.checkpoint.writer import save
    from quant.config import QuantizationConfig
    from quant.errors import ArtifactError, QuantizationError, SchemeError
    from quant.linear import QuantLinear
    from quant.scheme import Scheme
    from quant.solvers.base import Solver
    from quant.transforms.base import Transform
    from quant.weight import QuantizedWeight

__all__ = [
    "Allocation",
    "ArtifactError",
    "QuantLinear",
    "QuantizationConfig",
    "QuantizationError",
    "QuantizationResult",
    "QuantizedWeight",
    "Scheme",
    "SchemeError",
    "Solver",
    "Transform",
    "export",
    "load",
    "load_weights",
    "quantize_model",
    "save",
]

_HOME = {
    "Allocation": "quant.allocation",
    "ArtifactError": "quant.errors",
    "QuantLinear": "quant.linear",
    "QuantizationConfig": "quant.config",
    "QuantizationError": "quant.errors",
    "QuantizationResult": "quant.calibrate.stream",
    "QuantizedWeight": "quant.weight",
    "Scheme": "quant.scheme",
    "SchemeError": "quant.scheme",
    "Solver": "quant.solvers.base",
    "Transform": "quant.transforms.base",
    "export": "quant.checkpoint.export",
    "load": "quant.checkpoint.loader",
    "load_weights": "quant.checkpoint.loader",
    "quantize_model": "quant.calibrate.stream",
    "save": "quant.checkpoint.writer",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import quant` loads neither torch nor transformers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
