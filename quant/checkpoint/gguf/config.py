"""Make config.json of the metadata, and find keys that would change what a model computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quant.checkpoint.gguf.architecture import Architecture, Config, Key
from quant.checkpoint.gguf.file import GgufFile
from quant.checkpoint.gguf.rope import ROPE_KEYS, positions
from quant.errors import ArtifactError

DECODER = (
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size"),
    Key("block_count", "num_hidden_layers"),
    Key("attention.head_count", "num_attention_heads"),
)
CONTEXT = Key("context_length", "max_position_embeddings")
KV_HEADS = "attention.head_count_kv"
HEAD, HEAD_OF_VALUES = "attention.key_length", "attention.value_length"
_VOCABULARY = "vocab_size"
# Keys with another meaning than numbers of the model, or with none for a decoder.
_HARMLESS = {
    "tensor_data_layout",
    "pooling_type",
    "expert_used_count",
    "expert_gating_func",
    "decoder_start_token_id",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
}
# Keys that change what a model computes, with the values that change nothing.
_CHANGES: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attention.key_length_swa": (),
    "attention.value_length_swa": (),
    "attention.shared_kv_layers": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "rope.dimension_sections": (),
    "rope.dimension_count_swa": (),
    "rope.freq_base_swa": (),
    "use_parallel_residual": (),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "embedding_length_per_layer_input": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
}
# Of these architectures the converter says what is so anyway.
_SO_ANYWAY = {"phi2": {"use_parallel_residual": (True,)}}
_NOTHING = (0, False, "", "none")


def config(file: GgufFile, how: Architecture) -> Config:
    """config.json without its dtype and tokens.

    Raises ArtifactError for a key that is missing, contradicts another or the embedding, or changes
    what the model computes in a way that is not read.
    """
    _refuse_changes(file, how)
    found: Config = {"architectures": [how.cls], "model_type": how.model_type, **how.fixed}
    found |= {key.field: _read(file, how, key) for key in DECODER}
    heads = found["num_attention_heads"]
    found["num_key_value_heads"] = file.number(f"{how.name}.{KV_HEADS}", heads)
    _require(heads % found["num_key_value_heads"] == 0, file, how, "attention.head_count",
             f"is no multiple of {KV_HEADS}={found['num_key_value_heads']}")  # fmt: skip
    found["head_dim"] = _head(file, how, found)
    found |= {key.field: _read(file, how, key) for key in (CONTEXT, *how.keys)}
    found |= positions(file, found, partial=how.partial)
    rests = {rest.flag: rest.rows[0].stored for rest in how.rests}
    found |= {flag: f"blk.0.{stored}" in file.tensors for flag, stored in rests.items()}
    found["tie_word_embeddings"] = how.head[0].stored not in file.tensors
    found["vocab_size"] = _vocabulary(file, how)
    return found | how.more(file, found)


def not_understood(file: GgufFile, how: Architecture) -> list[str]:
    """Keys of the architecture that are not read and not known to be harmless."""
    known = {key.name for key in (*DECODER, CONTEXT, *how.keys)} | {
        KV_HEADS,
        HEAD,
        HEAD_OF_VALUES,
    }
    known |= {_VOCABULARY, *how.also, *ROPE_KEYS, *_HARMLESS, *_CHANGES}
    return sorted(
        key
        for key, value in file.metadata.items()
        if key.startswith(f"{how.name}.")
        and key.removeprefix(f"{how.name}.") not in known
        and not _nothing(value)
    )


def _read(file: GgufFile, how: Architecture, key: Key) -> float:
    read = file.number if key.whole else file.real
    return read(f"{how.name}.{key.name}", key.default)


def _refuse_changes(file: GgufFile, how: Architecture) -> None:
    read = {key.name for key in how.keys} | set(how.also)
    anyway = _SO_ANYWAY.get(how.name, {})
    for name, harmless in _CHANGES.items():
        value = file.metadata.get(f"{how.name}.{name}")
        if name in read or value is None or value in (*harmless, *anyway.get(name, ())):
            continue
        what = " (a mixture of experts)" if name == "expert_count" else ""
        raise ArtifactError(
            f"{file.path} has {how.name}.{name}={str(value)[:40]}{what}, which changes what the "
            "model computes and is not read from GGUF: use the Hugging Face folder of the model."
        )


def _head(file: GgufFile, how: Architecture, found: Config) -> int:
    """Dimensions of a head."""
    width, heads = found["hidden_size"], found["num_attention_heads"]
    if f"{how.name}.{HEAD}" not in file.metadata:
        _require(width % heads == 0, file, how, "embedding_length",
                 f"is no multiple of attention.head_count={heads}, and no {HEAD} says the size "
                 "of a head")  # fmt: skip
    head = file.number(f"{how.name}.{HEAD}", width // heads)
    values = file.number(f"{how.name}.{HEAD_OF_VALUES}", head)
    _require(values == head, file, how, HEAD_OF_VALUES, f"differs from that of keys, {head}")
    return head


def _vocabulary(file: GgufFile, how: Architecture) -> int:
    rows = file.shape("token_embd.weight")[0]
    tokens = len(file.required("tokenizer.ggml.tokens"))
    stated = file.number(f"{how.name}.{_VOCABULARY}", rows)
    for what, count in ((f"{how.name}.{_VOCABULARY}", stated), ("the tokenizer", tokens)):
        if count != rows:
            raise ArtifactError(
                f"{file.path} has {rows} rows in token_embd.weight, and {what} has {count}: it is "
                "damaged or was changed; download it again."
            )
    return rows


def _require(fits: bool, file: GgufFile, how: Architecture, key: str, why: str) -> None:
    if not fits:
        key = f"{how.name}.{key}"
        raise ArtifactError(
            f"{file.path} has {key}={file.metadata.get(key)}, which {why}: it is damaged or was "
            "changed; download it again."
        )


def _nothing(value: Any) -> bool:
    if isinstance(value, list):
        return all(_nothing(each) for each in value)
    return value in _NOTHING
