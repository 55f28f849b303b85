"""Gemma 1, 2 and 3 (text) in GGUF.

The largest of Gemma 2 and 3 divide attention's products by another number than the root of a head's
size. No key says so: llama.cpp knows them by their number of blocks, and so must a reader.
"""

from __future__ import annotations

from quant.checkpoint.gguf.architecture import Architecture, Config, Key, weight
from quant.checkpoint.gguf.decoder import (
    ATTENTION,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    HEAD_NORMS,
    MLP,
    NORMS,
    RMS,
    gemma_norms,
)
from quant.checkpoint.gguf.file import GgufFile
from quant.errors import ArtifactError

_TANH = "gelu_pytorch_tanh"
_WHOLE = (EMBEDDING, *gemma_norms(FINAL_NORM))
_FOUR_NORMS = gemma_norms(
    weight("attn_norm", "input_layernorm", "width"),
    weight("post_attention_norm", "post_attention_layernorm", "width"),
    weight("ffn_norm", "pre_feedforward_layernorm", "width"),
    weight("post_ffw_norm", "post_feedforward_layernorm", "width"),
)
_CAPS = (
    ("attn_logit_softcapping", 50.0),
    ("final_logit_softcapping", 30.0),
)
_GEMMA_2_27B, _GEMMA_3_27B = 46, 62  # blocks
_PATTERN = "attention.sliding_window_pattern"
_LOCAL_BASE = "rope.freq_base_swa"


def _gemma2(file: GgufFile, config: Config) -> Config:
    return {
        "query_pre_attn_scalar": _divisor(config, _GEMMA_2_27B),
        "layer_types": _kinds(file, config, 2),
        **{name: _cap(file, name, default) for name, default in _CAPS},
    }


def _gemma3(file: GgufFile, config: Config) -> Config:
    """Scaled positions are those of the blocks that see everything alone."""
    return {
        "query_pre_attn_scalar": _divisor(config, _GEMMA_3_27B),
        "layer_types": _kinds(file, config, 6),
        "rope_local_base_freq": file.real(f"gemma3.{_LOCAL_BASE}", 10000.0),
        **{name: _cap(file, name, 0.0) for name, _ in _CAPS},
    }


def _caps(config: Config) -> Config:
    """Without a cap the file says nothing, and is read with the usual one: check_config refuses."""
    return {name: float(config[name]) for name, _ in _CAPS if config.get(name) is not None}


def _local_base(config: Config) -> Config:
    return {_LOCAL_BASE: float(config["rope_parameters"]["sliding_attention"]["rope_theta"])}


def _cap(file: GgufFile, name: str, default: float) -> float | None:
    return file.real(f"{file.architecture}.{name}", default) or None


def _divisor(config: Config, blocks: int) -> int:
    if config["num_hidden_layers"] == blocks:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _kinds(file: GgufFile, config: Config, default: int) -> list[str]:
    """Every last of a period sees everything, the others a window; or a list says which do."""
    found = file.metadata.get(f"{file.architecture}.{_PATTERN}", default)
    blocks = range(config["num_hidden_layers"])
    if isinstance(found, list):
        if len(found) != len(blocks):
            raise ArtifactError(
                f"{file.path} has {file.architecture}.{_PATTERN} for {len(found)} blocks, and "
                f"{len(blocks)} blocks: it is damaged or was changed; download it again."
            )
        local = [bool(each) for each in found]
    else:
        period = file.number(f"{file.architecture}.{_PATTERN}", default)
        local = [(block + 1) % period != 0 for block in blocks]
    return ["sliding_attention" if each else "full_attention" for each in local]


ARCHITECTURES = (
    Architecture(
        name="gemma",
        cls="GemmaForCausalLM",
        model_type="gemma",
        fixed={"hidden_act": _TANH, "hidden_activation": _TANH, "attention_bias": False},
        keys=(RMS,),
        whole=_WHOLE,
        block=(*gemma_norms(*NORMS), *ATTENTION, *MLP),
        head=HEAD,
        written=("gemma",),
    ),
    Architecture(
        name="gemma2",
        cls="Gemma2ForCausalLM",
        model_type="gemma2",
        fixed={"hidden_activation": _TANH, "attention_bias": False},
        keys=(RMS, Key("attention.sliding_window", "sliding_window", 4096)),
        whole=_WHOLE,
        block=(*_FOUR_NORMS, *ATTENTION, *MLP),
        head=HEAD,
        more=_gemma2,
        also=(_PATTERN, *(name for name, _ in _CAPS)),
        written=("gemma2",),
        unread=_caps,
        windowed=True,
    ),
    Architecture(
        name="gemma3",
        cls="Gemma3ForCausalLM",
        model_type="gemma3_text",
        fixed={"hidden_activation": _TANH, "attention_bias": False},
        keys=(RMS, Key("attention.sliding_window", "sliding_window")),
        whole=_WHOLE,
        block=(*_FOUR_NORMS, *gemma_norms(*HEAD_NORMS), *ATTENTION, *MLP),
        head=HEAD,
        more=_gemma3,
        also=(_PATTERN, _LOCAL_BASE, *(name for name, _ in _CAPS)),
        written=("gemma3_text",),
        unread=_local_base,
        windowed=True,
    ),
)
