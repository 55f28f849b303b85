"""model=dummy: random weights of any architecture, for timing what cannot be downloaded."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from harness.config.schema import CellConfig, ModelConfig
from harness.errors import ModelError

VERSION = 1  # raise it when the same seed gives other weights
RANDOM = "random"  # the method of packed random weights
WORKSPACE = {"cuda": 2**30, "cpu": 2**26}  # bytes beside model and cache: library workspaces


def is_dummy(model: ModelConfig) -> bool:
    return model.source == "dummy"


def architecture(model: ModelConfig) -> Any:
    """The transformers config of model.architecture; ModelError naming what is wrong with it."""
    from quant.measure.architectures import ARCHITECTURES, ArchitectureError, architecture_config

    if model.architecture is None:
        raise ModelError(
            "model=dummy needs to know which model to imitate: add model.architecture=NAME "
            f"({', '.join(ARCHITECTURES)}) or the path of a config.json."
        )
    try:
        return architecture_config(model.architecture)
    except ArchitectureError as error:
        raise ModelError(f"model.{error}") from error


def fingerprint(model: ModelConfig) -> str:
    """sha256 over the dimensions and the version of the generator; seeds are in the cell's key."""
    dimensions = architecture(model).to_dict()
    dimensions.pop("transformers_version", None)
    text = json.dumps([VERSION, dimensions], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def load(config: CellConfig, *, packed: bool) -> Any:
    """The random model of a cell: packed in its scheme, or in full precision (its twin).

    Raises quant.measure.dummy.NotEnoughMemory with figures before anything is allocated.
    """
    import torch

    from harness.cell.validation import make_scheme
    from quant.measure.dummy import build_dummy

    dtype = getattr(torch, config.model.dtype)
    shape = architecture(config.model)
    return build_dummy(
        shape,
        make_scheme(config.scheme) if packed else None,
        device=config.runtime.device,
        dtype=dtype,
        kernel=config.runtime.kernel,
        seed=config.seed,
        beside=_beside(config, shape, dtype.itemsize),
        attn_implementation=_attention(config.model, shape),
    )


def _beside(config: CellConfig, shape: Any, itemsize: int) -> int:
    """Bytes that measuring needs besides the weights: keys and values, and workspaces."""
    workspace = WORKSPACE["cuda" if config.runtime.device.startswith("cuda") else "cpu"]
    latency = config.suite.latency
    if latency is None:
        return workspace
    positions = latency.prompt_tokens + latency.decode_tokens
    # Two caches: the static one, and the dynamic one that it is checked against.
    return workspace + 4 * positions * shape.num_hidden_layers * shape.hidden_size * itemsize


def _attention(model: ModelConfig, shape: Any) -> str | None:
    """As configured; the architecture's own choice where it has no such attention."""
    return None if shape.model_type == "bloom" else model.attention
