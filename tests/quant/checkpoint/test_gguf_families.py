"""Every family of GGUF against the transformers model of the same dequantized weights."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from quant.checkpoint.gguf.config import config
from quant.checkpoint.gguf.families import ARCHITECTURES
from quant.checkpoint.gguf.file import read_gguf
from quant.checkpoint.gguf.unpack import unpack
from tests.quant.checkpoint import gguf_families as families

KINDS = ("F32", "Q4_0", "Q8_0")


def logits(made: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = made(torch.arange(3, 60)[None]).logits
    return found


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_logits_are_those_of_the_dequantized_model(tmp_path: Path, family: str, kind: str) -> None:
    made = families.model(family)
    path = families.write(tmp_path / "m.gguf", family, made, kind, tokenizer=families.byte_level())
    folder = unpack(path, tmp_path / "out")
    assert torch.equal(logits(loaded(folder)), logits(families.rounded(made, kind)))
    assert json.loads((folder / "gguf.json").read_text())["not_understood"] == []


def same(tmp_path: Path, family: str, made: Any, **how: Any) -> dict[str, Any]:
    """config.json of what is read of the model's file; its logits must be the model's."""
    path = families.write(tmp_path / "m.gguf", family, made, tokenizer=families.byte_level(), **how)
    folder = unpack(path, tmp_path / "out")
    assert torch.equal(logits(loaded(folder)), logits(made))
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_biases_are_read_if_all_of_them_are_there(tmp_path: Path) -> None:
    """Those of queries and keys lie in the order of their rows."""
    found = same(tmp_path, "llama", families.model("llama", attention_bias=True, mlp_bias=True))
    assert found["attention_bias"]
    assert found["mlp_bias"]


def test_a_llama_with_a_window_is_a_mistral(tmp_path: Path) -> None:
    made = families.model("llama", "mistral", sliding_window=8)
    found = same(tmp_path, "llama", made, llama__attention__sliding_window=8)
    assert (found["model_type"], found["architectures"]) == ("mistral", ["MistralForCausalLM"])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_joined_queries_keys_and_values_are_parted(tmp_path: Path, family: str) -> None:
    def join(tensors: dict[str, np.ndarray]) -> None:
        for block in range(families.LAYERS):
            for part in ("weight", "bias"):
                names = [f"blk.{block}.attn_{each}.{part}" for each in "qkv"]
                if names[0] in tensors:
                    whole = np.concatenate([tensors.pop(name) for name in names])
                    tensors[f"blk.{block}.attn_qkv.{part}"] = whole

    same(tmp_path, family, families.model(family), change=join)


@pytest.mark.parametrize(("family", "blocks"), [("gemma2", 46), ("gemma3", 62)])
@pytest.mark.parametrize("less", [0, 1])
def test_the_largest_gemmas_divide_by_another_number(
    tmp_path: Path, family: str, blocks: int, less: int
) -> None:
    """No key says so; the divisors are those of the published configurations."""
    width, heads, head, divisor = {"gemma2": (4608, 32, 128, 144), "gemma3": (5376, 32, 128, 168)}[
        family
    ]
    keys = {
        "block_count": blocks - less, "context_length": 8192, "embedding_length": width,
        "feed_forward_length": 8, "attention.head_count": heads, "attention.head_count_kv": 16,
        "attention.key_length": head, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 4096,
    }  # fmt: skip
    rows = len(families.byte_level()["tokenizer.ggml.tokens"])
    embedding = np.zeros((rows, 1), np.float32), gguf.GGMLQuantizationType.F32
    path = families.write_keys(
        tmp_path / "m.gguf", family,
        {f"{family}.{key}": value for key, value in keys.items()} | families.byte_level(),
        {"token_embd.weight": embedding},
    )  # fmt: skip
    found = config(read_gguf(path), ARCHITECTURES[family])
    assert found["query_pre_attn_scalar"] == (head if less else divisor)
    kinds = found["layer_types"]
    full = [at for at, kind in enumerate(kinds) if kind == "full_attention"]
    period = 2 if family == "gemma2" else 6
    assert full == list(range(period - 1, blocks - less, period))
