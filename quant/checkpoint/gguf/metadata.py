"""Keys of the metadata made of config.json: the reverse of `quant.checkpoint.gguf.config`.

What was made is read back with the reader's own code and compared with config.json, so that nothing
that changes what a model computes is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from quant.checkpoint.gguf.architecture import Architecture, Config
from quant.checkpoint.gguf.config import CONTEXT, DECODER, HEAD, HEAD_OF_VALUES, KV_HEADS
from quant.checkpoint.gguf.config import config as read_config
from quant.checkpoint.gguf.families import ARCHITECTURES
from quant.checkpoint.gguf.file import GgufFile, StoredTensor
from quant.checkpoint.gguf.rope import FREQUENCIES, llama3_factors, rope_keys
from quant.errors import ArtifactError

# Fields of config.json that change nothing in a forward pass without labels.
_HARMLESS = {
    "initializer_range",
    "use_cache",
    "pretraining_tp",
    "attention_dropout",
    "max_window_layers",  # without a window
    "no_rope_layer_interval",  # no_rope_layers says it
    "original_max_position_embeddings",  # rope_parameters have it where it counts
    "embd_pdrop",
    "resid_pdrop",
    "model_type",
    "quantization_config",
    "rope_theta",  # older models have it beside rope_parameters
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
_OTHERWISE = "use --format gptq-v2 or compressed-tensors"


def architecture_of(config: Config, source: Path) -> Architecture:
    """Return how a model is written; ArtifactError for one that is not."""
    kind = str(config.get("model_type"))
    for how in ARCHITECTURES.values():
        if kind in how.written:
            return how
    known = sorted(kind for how in ARCHITECTURES.values() for kind in how.written)
    raise ArtifactError(
        f"{source} is a {kind} model, and only {', '.join(known)} are written to GGUF: "
        f"{_OTHERWISE}."
    )


def keys_of(how: Architecture, config: Config) -> dict[str, Any]:
    """Return the keys of the architecture, with its name before them."""
    heads = config["num_attention_heads"]
    head = _head(config)
    found: dict[str, Any] = {}
    for key in (*DECODER, CONTEXT, *how.keys):
        found[key.name] = int(config[key.field]) if key.whole else float(config[key.field])
    found[KV_HEADS] = config.get("num_key_value_heads") or heads
    found |= {HEAD: head, HEAD_OF_VALUES: head, "vocab_size": config["vocab_size"]}
    found |= {**rope_keys(_rope(config), head, how.partial), **how.unread(config)}
    return {f"{how.name}.{key}": value for key, value in found.items()}


def factors_of(config: Config) -> dict[str, Tensor]:
    """Return the tensors of scaled positions, float32; {} for positions that need none."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return {}
    factors = llama3_factors(
        rope["rope_theta"],
        _head(config),
        rope["factor"],
        rope["original_max_position_embeddings"],
    )
    return {FREQUENCIES: factors.float()}


def as_read(
    source: Path, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, Tensor],
) -> GgufFile:  # fmt: skip
    """Return what the reader would see of a file with these keys and tensors, without values."""
    tensors = {
        name: StoredTensor(name, shape, "F32", 0, _raw(factors.get(name)))
        for name, shape in shapes.items()
    }
    return GgufFile(source, metadata, tensors)


def check_config(file: GgufFile, how: Architecture, config: Config) -> Config:
    """Return the config.json that the reader makes; ArtifactError if it is another model's.

    The error names the first field that the file could not hold.
    """
    from transformers import AutoConfig, PretrainedConfig

    made = read_config(file, how)
    kinds = {key: value for key, value in made.items() if key != "model_type"}
    found = AutoConfig.for_model(made["model_type"], **kinds).to_dict()
    config = {**config, "head_dim": _head(config)}
    # Fields that neither the class nor this model has are the reader's, for older versions.
    read = AutoConfig.for_model(made["model_type"]).to_dict().keys() | config.keys()
    for key in sorted(read - PretrainedConfig().to_dict().keys()):
        if key not in _HARMLESS and _plain(found.get(key)) != _plain(config.get(key)):
            raise ArtifactError(
                f"{file.path} has {key}={str(config.get(key))[:80]} in config.json, and a GGUF "
                f"file of {how.name} would say {str(found.get(key))[:80]}: {_OTHERWISE}."
            )
    return made


def _raw(values: Tensor | None) -> Any:
    return None if values is None else SimpleNamespace(data=values.numpy())


def _head(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: Config) -> Config:
    """Positions of the blocks; of those that see everything, where others have their own."""
    rope: Config = config.get("rope_parameters") or {}
    found: Config = rope.get("full_attention", rope)
    return found


def _plain(value: Any) -> Any:
    """A value for comparison: a field that is left out, None and False say the same."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if _plain(each) is not None}
    if isinstance(value, torch.dtype):
        return str(value)
    return None if value is False else value
