"""What Bitsweep adds to the quantization_config of any format: grids and the producer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quant.scheme import GRIDS

Config = Mapping[str, Any]


def read_meta(config: Config) -> tuple[str, str]:
    """Return grid and producer from Bitsweep's or GPTQModel's metadata; the producer may be ""."""
    meta = _meta(config)
    grid = _known_grid(meta, "grid")
    # GPTQModel writes a list of quantizers ("gptqmodel:4.2.5").
    found = meta.get("producer") or meta.get("quantizer") or ""
    return grid, ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def read_head_grid(config: Config) -> str:
    """Return the grid of the head from Bitsweep's metadata; "minmax" if it is not declared."""
    return _known_grid(_meta(config), "head_grid")


def read_own_grid(config: Config, layer: str) -> str:
    """Return the grid of a layer with settings of its own from Bitsweep's metadata."""
    meta = _meta(config)
    grids = meta.get("grids")
    return _known_grid(grids, layer) if isinstance(grids, Mapping) else _known_grid(meta, "grid")


def _meta(config: Config) -> Config:
    meta = config.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _known_grid(meta: Config, key: str) -> str:
    return str(meta[key]) if meta.get(key) in GRIDS else "minmax"
