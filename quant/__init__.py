"""Post-training quantization of language models: schemes, solvers, QuantLinear, checkpoints."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.calibrate.stream import QuantizationPlan, QuantizationResult, quantize_model
    from quant.checkpoint.export import export
    from quant.checkpoint.loader import load, load_weights
    from quant.checkpoint.writer import save
    from quant.errors import ArtifactError, QuantizationError
    from quant.linear import QuantLinear
    from quant.scheme import Scheme, SchemeError
    from quant.solvers.gptq import GPTQOptions
    from quant.weight import QuantizedWeight

__all__ = [
    "ArtifactError",
    "GPTQOptions",
    "QuantLinear",
    "QuantizationError",
    "QuantizationPlan",
    "QuantizationResult",
    "QuantizedWeight",
    "Scheme",
    "SchemeError",
    "export",
    "load",
    "load_weights",
    "quantize_model",
    "save",
]

_HOME = {
    "ArtifactError": "quant.errors",
    "GPTQOptions": "quant.solvers.gptq",
    "QuantLinear": "quant.linear",
    "QuantizationError": "quant.errors",
    "QuantizationPlan": "quant.calibrate.stream",
    "QuantizationResult": "quant.calibrate.stream",
    "QuantizedWeight": "quant.weight",
    "Scheme": "quant.scheme",
    "SchemeError": "quant.scheme",
    "export": "quant.checkpoint.export",
    "load": "quant.checkpoint.loader",
    "load_weights": "quant.checkpoint.loader",
    "quantize_model": "quant.calibrate.stream",
    "save": "quant.checkpoint.writer",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import quant` loads neither torch nor transformers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
