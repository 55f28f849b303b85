"""Llama in GGUF: names of tensors, config.json, and the order of the rows of queries and keys."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from quant.checkpoint.gguf.architecture import Architecture, Placed
from quant.checkpoint.gguf.file import GgufFile
from quant.errors import ArtifactError

NAME = "llama"
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_HEAD = {"output.weight": "lm_head.weight"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def config(file: GgufFile) -> dict[str, Any]:
    """config.json of a Llama; ArtifactError for a variant that is not read."""
    read = partial(_number, file)
    scaling = file.metadata.get(f"{NAME}.rope.scaling.type", "none")
    if scaling != "none":
        raise ArtifactError(
            f"{file.path} scales its rotary positions ({NAME}.rope.scaling.type={scaling}), which "
            "is not read: use the Hugging Face folder of the model."
        )
    if file.metadata.get(f"{NAME}.expert_count"):
        raise ArtifactError(
            f"{file.path} is a mixture of experts ({NAME}.expert_count="
            f"{file.metadata[f'{NAME}.expert_count']}), which is not read from GGUF: use the "
            "Hugging Face folder of the model."
        )
    width, heads = read("embedding_length"), read("attention.head_count")
    rotated = file.metadata.get(f"{NAME}.rope.dimension_count", width // heads)
    head = file.metadata.get(f"{NAME}.attention.key_length", width // heads)
    if rotated != head:
        raise ArtifactError(
            f"{file.path} rotates {rotated} of the {head} dimensions of a head, which is not read: "
            "use the Hugging Face folder of the model."
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": read("feed_forward_length"),
        "num_hidden_layers": read("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(file),
        "head_dim": head,
        "max_position_embeddings": read("context_length"),
        "rms_norm_eps": _shortest(file.required(f"{NAME}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(file.metadata.get(f"{NAME}.rope.freq_base", 10000.0)),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
    }


def tensors(file: GgufFile) -> dict[str, Placed]:
    """Where every tensor of the file goes; ArtifactError for a missing or unknown one."""
    heads, kv_heads = _number(file, "attention.head_count"), _kv_heads(file)
    ordered = {
        "attn_q": partial(rows_in_halves, heads=heads),
        "attn_k": partial(rows_in_halves, heads=kv_heads),
    }
    placed = {ours: Placed(theirs) for theirs, ours in _WHOLE.items()}
    for index in range(_number(file, "block_count")):
        for theirs, ours in _BLOCK.items():
            name = f"model.layers.{index}.{ours}.weight"
            placed[name] = Placed(f"blk.{index}.{theirs}.weight", ordered.get(theirs))
    placed |= {ours: Placed(theirs) for theirs, ours in _HEAD.items() if theirs in file.tensors}
    known = {each.stored for each in placed.values()}
    for what, names in (
        ("has no tensor", known - file.tensors.keys()),
        ("has a tensor that no Llama has,", file.tensors.keys() - known),
    ):
        if names:
            raise ArtifactError(
                f"{file.path} {what} {min(names)}, so it is another variant than is read, or "
                "damaged: use the Hugging Face folder of the model."
            )
    return placed


def rows_in_halves(weight: Tensor, heads: int) -> Tensor:
    """The rows of queries or keys in the order of Hugging Face.

    It rotates the first half of a head against the second; llama.cpp's converter lays the two rows
    of each pair side by side.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _kv_heads(file: GgufFile) -> int:
    if f"{NAME}.attention.head_count_kv" in file.metadata:
        return _number(file, "attention.head_count_kv")
    return _number(file, "attention.head_count")


def _number(file: GgufFile, key: str) -> int:
    return file.number(f"{NAME}.{key}")


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32, so that 1e-5 stays 1e-5."""
    return float(f"{value:.7g}")


ARCHITECTURE = Architecture(NAME, config, tensors)
