"""model=dummy: random weights of any architecture, to time models that cannot be downloaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.config.schema import ModelConfig
from harness.errors import ModelError
from quant.spread.split import MARGIN

if TYPE_CHECKING:
    from quant.scheme import Scheme
    from quant.spread.place import Over
    from quant.spread.split import Parts

VERSION = 1  # raise it when the same seed gives other weights
# Architectures of transformers without sdpa. A test compares them with the classes, which take
# seconds to import; for stored models the class is asked.
WITHOUT_SDPA = ("bloom", "codegen", "gemma2", "gpt_oss", "gptj", "mpt")
# What config.json calls the number of features between blocks.
HIDDEN = ("hidden_size", "n_embd", "d_model")
WORKSPACE = {"cuda": 2**30, "cpu": 2**26}  # bytes for workspaces of libraries


def workspace_of(device: str) -> int:
    """Bytes that libraries need on a device, by torch's name for it."""
    return WORKSPACE["cuda" if device.startswith("cuda") else "cpu"]


def usable(free: int | None, device: str) -> int | None:
    """What weights, keys and values may take of the free bytes of a device; None: not known."""
    return None if free is None else int(free * (1 - MARGIN)) - workspace_of(device)


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
    over: Over | None = None,
) -> Any:
    """Make the random model: packed in `scheme`, or in full precision (its baseline) if it is None.

    positions  tokens in the KV cache, for which memory is reserved.
    over       several devices for its blocks, in place of `device`.

    Raises NotEnoughMemory, with figures, before anything is allocated.
    """
    import torch

    from quant.measure.dummy import build_dummy

    dtype = getattr(torch, model.dtype)
    shape = architecture(model)
    workspace = workspace_of(device)
    cache = shape.num_hidden_layers * cache_bytes(positions, shape.hidden_size, dtype.itemsize)
    return build_dummy(
        shape,
        scheme,
        device=device,
        dtype=dtype,
        kernel=kernel,
        seed=seed,
        beside=workspace + cache,
        attn_implementation=model.attention,
        over=over,
    )


def cache_bytes(positions: int, hidden: int, itemsize: int) -> int:
    """Bytes of a block's keys and values, at most, in two caches: one that is static, and the
    dynamic one that checks it.
    """
    return 4 * positions * hidden * itemsize


def parts(model: ModelConfig, scheme: Scheme | None, kernel: str) -> tuple[Parts, int, int]:
    """Bytes of the parts of the model, its hidden size and the bytes of a number in its dtype."""
    return _parts(str(model.architecture), model.dtype, scheme, kernel)


@lru_cache(maxsize=16)  # building it without weights takes half a second
def _parts(name: str, dtype: str, scheme: Scheme | None, kernel: str) -> tuple[Parts, int, int]:
    import torch

    from quant.measure.architectures import architecture_config
    from quant.measure.dummy import predict_parts

    config, kind = architecture_config(name), getattr(torch, dtype)
    found = predict_parts(config, scheme, dtype=kind, kernel=kernel)
    return found, config.hidden_size, kind.itemsize
