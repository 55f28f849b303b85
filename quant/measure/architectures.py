"""Dimensions of published models, to build and time sizes that cannot be downloaded.

Each entry is the part of the model's config.json that determines shapes, under transformers' names.
Sources: OPT, arXiv 2205.01068, Table 1; BLOOM, arXiv 2211.05100, Table 3; LLaMA, arXiv 2302.13971,
Table 2, and 2307.09288; Llama 3, arXiv 2407.21783, Table 3; the vocabularies of their tokenizers;
SmolLM2, the config.json of HuggingFaceTB/SmolLM2-135M.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from quant.errors import QuantizationError


def _opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "word_embed_proj_dim": hidden,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
    }


def _bloom(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bloom",
        "hidden_size": hidden,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": 250880,
    }


def _llama(
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    vocabulary: int = 32000,
    context: int = 2048,
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }


_LLAMA_3: dict[str, Any] = {"kv_heads": 8, "vocabulary": 128256, "context": 8192}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "opt-125m": _opt(768, 12, 12),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "opt-30b": _opt(7168, 48, 56),
    "opt-66b": _opt(9216, 64, 72),
    "opt-175b": _opt(12288, 96, 96),
    "bloom-560m": _bloom(1024, 24, 16),
    "bloom-7b1": _bloom(4096, 30, 32),
    "bloom-176b": _bloom(14336, 70, 112),
    "smollm2-135m": _llama(576, 1536, 30, 9, kv_heads=3, vocabulary=49152, context=8192),
    "llama-7b": _llama(4096, 11008, 32, 32),
    "llama-65b": _llama(8192, 22016, 80, 64),
    "llama-2-70b": _llama(8192, 28672, 80, 64, kv_heads=8, context=4096),
    "llama-3-8b": _llama(4096, 14336, 32, 32, **_LLAMA_3),
    "llama-3-70b": _llama(8192, 28672, 80, 64, **_LLAMA_3),
    "llama-3.1-405b": _llama(16384, 53248, 126, 128, **_LLAMA_3),
}


class ArchitectureError(QuantizationError):
    """An architecture is unknown, or a config.json does not describe one."""


def architecture_config(architecture: str) -> PreTrainedConfig:
    """Return the config of a name in ARCHITECTURES, or of a path to a config.json (or its folder).

    Raises ArchitectureError that names the value.
    """
    if architecture in ARCHITECTURES:
        return _make(dict(ARCHITECTURES[architecture]), architecture)
    path = Path(architecture)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ArchitectureError(
            f"architecture={architecture} is neither a name ({', '.join(ARCHITECTURES)}) nor a "
            "config.json on this machine: choose a name or give the path of such a file."
        )
    try:
        dimensions = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArchitectureError(
            f"architecture={architecture}: {file} is not valid JSON ({error}); copy it again."
        ) from error
    if not isinstance(dimensions, dict):
        raise ArchitectureError(
            f"architecture={architecture}: {file} is not a JSON object; pass a model's config.json."
        )
    # Only shapes matter: the weights are generated, even if the original is quantized.
    dimensions.pop("quantization_config", None)
    return _make(dimensions, str(file))


def _make(dimensions: dict[str, Any], source: str) -> PreTrainedConfig:
    kind = dimensions.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **dimensions)
    except (ValueError, KeyError, TypeError) as error:
        raise ArchitectureError(
            f"architecture={source}: model_type={kind!r} is not a model that transformers "
            f"{transformers.__version__} can build ({error}); use another architecture."
        ) from error
