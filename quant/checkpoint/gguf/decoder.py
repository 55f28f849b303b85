"""Rows that most decoders share, and changes of values that the converter of llama.cpp made."""

from __future__ import annotations

from torch import Tensor

from quant.checkpoint.gguf.architecture import Config, Key, Row, weight

RMS = Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", whole=False)
EMBEDDING = weight("token_embd", "model.embed_tokens", "vocabulary", "width")
FINAL_NORM = weight("output_norm", "model.norm", "width")
HEAD = (weight("output", "lm_head", "vocabulary", "width"),)
ATTENTION = (
    weight("attn_q", "self_attn.q_proj", "queries", "width"),
    weight("attn_k", "self_attn.k_proj", "keys", "width"),
    weight("attn_v", "self_attn.v_proj", "keys", "width"),
    weight("attn_output", "self_attn.o_proj", "width", "queries"),
)
MLP = (
    weight("ffn_gate", "mlp.gate_proj", "inner", "width"),
    weight("ffn_up", "mlp.up_proj", "inner", "width"),
    weight("ffn_down", "mlp.down_proj", "width", "inner"),
)
NORMS = (
    weight("attn_norm", "input_layernorm", "width"),
    weight("ffn_norm", "post_attention_layernorm", "width"),
)
HEAD_NORMS = (
    weight("attn_q_norm", "self_attn.q_norm", "head"),
    weight("attn_k_norm", "self_attn.k_norm", "head"),
)


def queries_in_halves(values: Tensor, config: Config) -> Tensor:
    """Queries as `rows_in_halves` orders them."""
    return rows_in_halves(values, config["num_attention_heads"])


def keys_in_halves(values: Tensor, config: Config) -> Tensor:
    """Keys as `rows_in_halves` orders them."""
    return rows_in_halves(values, config["num_key_value_heads"])


def rows_in_halves(values: Tensor, heads: int) -> Tensor:
    """The rows of queries or keys in the order of Hugging Face.

    It rotates the first half of a head against the second; llama.cpp's converter lays the two rows
    of each pair side by side.
    """
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def queries_in_pairs(values: Tensor, config: Config) -> Tensor:
    """Queries as llama.cpp orders them: undoes `queries_in_halves`."""
    return rows_in_pairs(values, config["num_attention_heads"])


def keys_in_pairs(values: Tensor, config: Config) -> Tensor:
    """Keys as llama.cpp orders them: undoes `keys_in_halves`."""
    return rows_in_pairs(values, config["num_key_value_heads"])


def rows_in_pairs(values: Tensor, heads: int) -> Tensor:
    """The rows of queries or keys in the order of llama.cpp: undoes `rows_in_halves`."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def less_one(values: Tensor, _config: Config) -> Tensor:
    """A norm's weight as Gemma's is stored, without the 1 that the converter added."""
    return values - 1


def plus_one(values: Tensor, _config: Config) -> Tensor:
    """A norm's weight as llama.cpp has it, with the 1 that Gemma adds when it computes.

    In float32, as the converter and the model add it: what is read again may differ from the weight
    in its last bits, and its sum with 1 does not.
    """
    return values.float() + 1


def gemma_norms(*rows: Row) -> tuple[Row, ...]:
    """The rows with 1 taken away."""
    return tuple(Row(row.stored, row.placed, row.shape, less_one, plus_one) for row in rows)
