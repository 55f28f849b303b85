"""Checks of a model's config.json before transformers reads it.

It must be an object that names its architecture and has possible sizes; transformers would build
any size, or end in a traceback.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import ModelError

MOST_LAYERS = 10_000
MOST_OF_ANYTHING = 2**31
# Names that architectures use for their sizes. null and lists (one size per layer) are left to
# transformers.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads")
SIZES = (
    *("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "head_dim"),
    *("intermediate_size", "ffn_dim", "n_inner", "vocab_size"),
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def require_described(file: Path, what: str) -> None:
    """Raise ModelError for a config.json that cannot be loaded; `what` names its folder.

    Faults that only the code of the architecture can detect are not found here.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{what}: config.json is not valid JSON ({error}); copy it again from the source."
        ) from error
    except RecursionError as error:
        raise ModelError(
            f"{what}: config.json is nested too deeply; use that of the original model."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(
            f"{what}: config.json holds {_kind(config)} instead of an object; use the config.json "
            "of the original model."
        )
    if not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{what}: config.json has no model_type, so its architecture is unknown; add the one "
            'that the original model has, as in "model_type": "llama".'
        )
    if config.get("is_encoder_decoder") is True:
        raise ModelError(encoder_decoder(what, config["model_type"]))
    _require_sizes(what, "", config)
    for part, values in config.items():  # text_config, vision_config
        if part.endswith("_config") and isinstance(values, dict):
            _require_sizes(what, f"{part}.", values)


def encoder_decoder(what: str, kind: str) -> str:
    """The error message for an encoder-decoder model of type `kind`."""
    return (
        f"{what} is an encoder-decoder model ({kind}), and Bitsweep measures models that predict "
        "the next token: use a decoder-only model, such as OPT, Llama or Qwen."
    )


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Context: turn errors of the file system into ModelErrors that name `what`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # Python 3.11 raises RuntimeError for a loop of links.
        loop = isinstance(error, RuntimeError) and "Symlink loop" in str(error)
        if not loop and not (isinstance(error, OSError) and error.errno):
            raise
        number = errno.ELOOP if loop else getattr(error, "errno", 0)
        file = Path(getattr(error, "filename", None) or str(error).rpartition("'")[0]).name
        named = f" ({file})" if loop or 0 < len(file) < 100 else ""
        said = what if len(what) < 300 else f"{what[:150]}...{what[-60:]}"
        raise ModelError(
            f"{said} cannot be read: {os.strerror(number)}{named}; correct the path or the file "
            "it points to."
        ) from error


def _require_sizes(what: str, part: str, config: Mapping[str, Any]) -> None:
    for names, least, most in (
        (LAYERS, 1, MOST_LAYERS),
        ((*HEADS, *SIZES), 1, MOST_OF_ANYTHING),
        (EXPERTS, 0, MOST_LAYERS),
    ):
        for name in names:
            value = config.get(name)
            if value is None or isinstance(value, list | dict):
                continue
            if type(value) is not int or not least <= value <= most:
                shown = json.dumps(value)[:40]
                raise ModelError(
                    f"{what}: config.json has {part}{name}={shown}, which must be {least} to "
                    f"{most}; correct it to the value of the original model."
                )


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")
