"""model=dummy: random weights of any architecture, to time models that cannot be downloaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.config.schema import ModelConfig
from harness.errors import ModelError

if TYPE_CHECKING:
    from quant.scheme import Scheme

VERSION = 1  # raise it when the same seed gives other weights
# Architectures of transformers without sdpa. A test compares them with the classes, which take
# seconds to import; for stored models the class is asked.
WITHOUT_SDPA = ("bloom", "codegen", "gemma2", "gpt_oss", "gptj", "mpt")
WORKSPACE = {"cuda": 2**30, "cpu": 2**26}  # bytes for workspaces of libraries


def architecture(model: ModelConfig) -> Any:
    """The transformers config of model.architecture; ModelError if there is none."""
    from quant.measure.architectures import ARCHITECTURES, ArchitectureError, architecture_config

    if model.architecture is None:
        raise ModelError(
            "model=dummy needs an architecture: add model.architecture=NAME "
            f"({', '.join(ARCHITECTURES)}) or the path of a config.json."
        )
    try:
        return architecture_config(model.architecture)
    except ArchitectureError as error:
        raise ModelError(f"model.{error}") from error


def with_attention(model: ModelConfig) -> ModelConfig:
    """The model with eager attention if its architecture has no sdpa."""
    if model.attention == "eager" or architecture(model).model_type not in WITHOUT_SDPA:
        return model
    return replace(model, attention="eager")


def fingerprint(model: ModelConfig) -> str:
    """sha256 over dimensions and generator version; the seed is in the cell's key."""
    dimensions = architecture(model).to_dict()
    dimensions.pop("transformers_version", None)
    text = json.dumps([VERSION, dimensions], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def load(
    model: ModelConfig,
    scheme: Scheme | None,
    *,
    device: str,
    kernel: str,
    seed: int,
    positions: int,
) -> Any:
    """Make the random model: packed in `scheme`, or in full precision (its baseline) if it is None.

    positions  tokens in the KV cache, for which memory is reserved.

    Raises NotEnoughMemory, with figures, before anything is allocated.
    """
    import torch

    from quant.measure.dummy import build_dummy

    dtype = getattr(torch, model.dtype)
    shape = architecture(model)
    workspace = WORKSPACE["cuda" if device.startswith("cuda") else "cpu"]
    # Two caches: the static one, and the dynamic one that checks it.
    cache = 4 * positions * shape.num_hidden_layers * shape.hidden_size * dtype.itemsize
    return build_dummy(
        shape,
        scheme,
        device=device,
        dtype=dtype,
        kernel=kernel,
        seed=seed,
        beside=workspace + cache,
        attn_implementation=model.attention,
    )
