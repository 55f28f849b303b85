"""Checkpoints: save, load, inspect and export quantized models (quant.checkpoint.formats).

docs/checkpoints.md says which format stores what, and which tools read it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.checkpoint.export import export
    from quant.checkpoint.folder import verify
    from quant.checkpoint.layers import read_layer
    from quant.checkpoint.loader import (
        dequantize_layers,
        load,
        load_weights,
        read_format,
        read_scheme,
        runnable,
    )
    from quant.checkpoint.writer import save

__all__ = [
    "dequantize_layers",
    "export",
    "load",
    "load_weights",
    "read_format",
    "read_layer",
    "read_scheme",
    "runnable",
    "save",
    "verify",
]

_HOME = {
    "dequantize_layers": "loader",
    "export": "export",
    "load": "loader",
    "load_weights": "loader",
    "read_format": "loader",
    "read_layer": "layers",
    "read_scheme": "loader",
    "runnable": "loader",
    "save": "writer",
    "verify": "folder",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, because these modules import transformers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
