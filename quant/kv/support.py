"""Schemes by name, and which models have a cache that they can replace, told from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from quant.kv.base import Cache, KvCacheError, KvScheme, Shape
from quant.parts import PartError, find_part

PACKAGE = "quant.kv.schemes"
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
WIDTH = ("hidden_size", "n_embd", "d_model")
# Keys of states that are no keys and values, or of windows that every layer or some have.
OTHER = {
    "a state in place of keys and values": (
        "mamba_d_state", "mamba_d_conv", "mamba_expand", "ssm_cfg", "state_size", "ssm_state_size",
        "conv_L_cache", "linear_num_value_heads", "layers_block_type", "block_types",
        "hybrid_override_pattern", "attention_hidden_size",
    ),
    "latents in place of keys and values": ("kv_lora_rank",),
    "attention to chunks or windows": ("attention_window_size", "window_size", "attention_layers",
                                       "attention_chunk_size"),
    "an encoder with a cache of its own": ("is_encoder_decoder",),
}  # fmt: skip
FULL = frozenset({"full_attention", "attention", "global"})


@dataclass(frozen=True)
class Chosen:
    """A scheme with its options; sha256 of its source if it is not of Bitsweep."""

    scheme: KvScheme
    options: Any
    sha256: str | None = None

    def solve(self, shape: Shape, length: int, bits: float) -> Cache:
        """The cache of this shape with at most `bits` for each number at `length` tokens."""
        return self.scheme.solve(self.options, shape, length, bits)


def scheme_names() -> list[str]:
    """The names of the built-in schemes."""
    return sorted(each.name for each in iter_modules(import_module(PACKAGE).__path__))


def find_scheme(name: str) -> tuple[KvScheme, str | None]:
    """A built-in scheme, or that of an installed module (a name with dots), and its source's hash.

    The hash is None for a built-in one, which has a version. Raises KvCacheError.
    """
    own = "." not in name
    if own and name not in scheme_names():
        raise KvCacheError(
            f"there is no kv scheme {name}{_close(name)}: choose from {', '.join(scheme_names())}, "
            "or name the module of one of yours with dots."
        )
    try:
        part = find_part(f"{PACKAGE}.{name}" if own else name)
        return part.load("SCHEME", KvScheme), part.sha256
    except PartError as error:
        raise KvCacheError(str(error)) from error


def _close(name: str) -> str:
    found = get_close_matches(name.lower(), scheme_names(), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def why_not(config: Mapping[str, Any]) -> str | None:
    """What a model has in place of a standard cache of all tokens; None: nothing that is told.

    config  its config.json (the text part of a multimodal one).
    """
    for what, names in OTHER.items():
        found = next((name for name in names if config.get(name)), None)
        if found is not None:
            return f"{what} ({found}={config[found]!r:.40})"
    others = sorted({str(each) for each in config.get("layer_types") or ()} - FULL)
    if others:
        return f"layers of {', '.join(others)} (layer_types)"
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        return f"a sliding window (sliding_window={config['sliding_window']})"
    if _first(config, HEADS) is None:
        return "no attention heads"
    return None


def expected_shape(config: Mapping[str, Any]) -> Shape | None:
    """The cache of a head as config.json has it; None if it does not say.

    The model itself says it for sure (quant.kv.attention.look).
    """
    width = config.get("head_dim")
    if not isinstance(width, int):
        whole, heads = _first(config, WIDTH), _first(config, HEADS)
        width = None if whole is None or heads is None else whole // heads
    if width is None:
        return None
    biased = bool(config.get("alibi")) or config.get("model_type") == "bloom"
    return Shape(width, width, biased)


def head_counts(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Heads of keys and values, and of queries; None if config.json does not say."""
    asked = _first(config, HEADS)
    if asked is None:
        return None
    kept = _first(config, ("num_key_value_heads",))
    return (1 if config.get("multi_query") else kept or asked), asked


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((v for n in names if isinstance(v := config.get(n), int)), None)
