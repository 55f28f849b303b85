"""Scaled rotary positions of GGUF files against transformers models with that scaling."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from quant.checkpoint.gguf.unpack import check, unpack
from quant.errors import ArtifactError
from tests.quant.checkpoint import gguf_families as families

Change = Callable[[dict[str, np.ndarray]], None]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
YARN_KEYS = {
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 32,
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SHORT, LONG = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
LONGROPE = {
    "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "attention_factor": 1.25,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def adding(**values: Any) -> Change:
    """A change that adds small tensors of positions (__ for .)."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name, value in values.items():
            tensors[name.replace("__", ".")] = np.array(value, np.float32)

    return change


def transformers_factors(made: Any) -> list[float]:
    """What transformers divides every frequency of the model by."""
    rotary = made.model.rotary_emb
    plain = 5000.0 ** -(torch.arange(0, 16, 2) / 16)
    return [float(each) for each in plain / rotary.inv_freq]


def written(tmp_path: Path, family: str, made: Any, keys: dict[str, Any], change: Change) -> Path:
    metadata = {f"{family}__{key}": value for key, value in keys.items()}
    return families.write(
        tmp_path / "m.gguf", family, made, tokenizer=families.byte_level(), change=change,
        **metadata,
    )  # fmt: skip


def logits(made: Any, length: int) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = made(torch.arange(3, 3 + length)[None]).logits
    return found


NONE: Change = adding()


@pytest.mark.parametrize(
    ("family", "scaling", "keys", "change"),
    [
        ("llama", {"rope_type": "linear", "factor": 4.0},
         {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, NONE),
        ("llama", {"rope_type": "linear", "factor": 4.0}, {"rope__scaling__factor": 4.0}, NONE),
        ("llama", {"rope_type": "linear", "factor": 4.0}, {"rope__scale_linear": 4.0}, NONE),
        ("llama", None, {"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, NONE),
        ("qwen2", YARN, YARN_KEYS, NONE),
        ("qwen3", {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
         {**YARN_KEYS, "rope__scaling__yarn_beta_fast": 16.0,
          "rope__scaling__yarn_beta_slow": 2.0}, NONE),
        ("llama", LONGROPE,
         {"rope__scaling__type": "longrope", "rope__scaling__attn_factor": 1.25,
          "rope__scaling__original_context_length": 32},
         adding(rope_factors_long__weight=LONG, rope_factors_short__weight=SHORT)),
        ("phi3", LONGROPE,
         {"rope__scaling__attn_factor": 1.25, "rope__scaling__original_context_length": 32},
         adding(rope_factors_long__weight=LONG, rope_factors_short__weight=SHORT)),
    ],
)  # fmt: skip
def test_scaled_positions_are_those_of_transformers(
    tmp_path: Path, family: str, scaling: dict[str, Any] | None, keys: dict[str, Any],
    change: Change,
) -> None:  # fmt: skip
    """Short and long texts; a reader that ignores the keys gives other logits."""
    fields = {"original_max_position_embeddings": 32} if family == "phi3" else {}
    made = families.model(family, rope_scaling=scaling, **fields)
    folder = unpack(written(tmp_path, family, made, keys, change), tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, attn_implementation="eager"
    ).eval()
    plain = families.model(family)
    for length in (20, 60):
        expected = logits(made, length)
        torch.testing.assert_close(logits(found, length), expected, rtol=0, atol=1e-5)
        assert (scaling is None) == torch.equal(logits(plain, length), expected)


def test_long_factors_are_those_of_long_texts(tmp_path: Path) -> None:
    """transformers takes the original length of Phi 3 from another place than the scaling."""
    short = families.model("phi3", rope_scaling={**LONGROPE, "long_factor": SHORT})
    change = adding(rope_factors_long__weight=LONG, rope_factors_short__weight=SHORT)
    keys = {"rope__scaling__attn_factor": 1.25, "rope__scaling__original_context_length": 32}
    folder = unpack(written(tmp_path, "phi3", short, keys, change), tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, attn_implementation="eager"
    ).eval()
    torch.testing.assert_close(logits(found, 32), logits(short, 32), rtol=0, atol=1e-5)
    assert (logits(found, 33) - logits(short, 33)).abs().max() > 0.1


@pytest.mark.parametrize("named", [True, False])
def test_factors_in_a_tensor_are_llama3_or_a_list(tmp_path: Path, named: bool) -> None:
    """The converter writes the scaling of Llama 3.1 as factors and nothing else."""
    made = families.model("llama", rope_scaling=LLAMA3)
    factors = transformers_factors(made)
    assert len({round(factor, 3) for factor in factors}) > 3, "all three ranges"
    keys = {"rope__scaling__original_context_length": 64 if named else 128}
    path = written(tmp_path, "llama", made, keys, adding(rope_freqs__weight=factors))
    folder = unpack(path, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    torch.testing.assert_close(logits(found, 60), logits(made, 60), rtol=0, atol=1e-4)
    scaling = json.loads((folder / "config.json").read_text())["rope_scaling"]
    assert scaling == LLAMA3 if named else scaling["rope_type"] == "longrope"


@pytest.mark.parametrize(
    ("keys", "change", "words"),
    [
        ({"rope__scaling__type": "dynamic"}, NONE, "by llama.rope.scaling.type=dynamic"),
        ({"rope__scaling__alpha": 2.0}, NONE, "by llama.rope.scaling.alpha=2.0"),
        ({"rope__scaling__yarn_attn_factor": 2.0}, NONE, "by llama.rope.scaling.yarn_attn_factor"),
        ({"rope__scaling__attn_factor": 2.0}, NONE, "by llama.rope.scaling.attn_factor=2.0"),
        ({"rope__scaling__type": "longrope"}, NONE, "has no tensor rope_factors_long.weight"),
        ({"rope__scaling__factor": 2.0}, adding(rope_freqs__weight=SHORT), "positions twice"),
        ({}, adding(rope_freqs__weight=[1.0] * 4), "rope_freqs.weight of shape [4], and"),
    ],
)
def test_other_scalings_are_refused_by_name(
    tmp_path: Path, keys: dict[str, Any], change: Change, words: str
) -> None:
    path = written(tmp_path, "llama", families.model("llama"), keys, change)
    with pytest.raises(ArtifactError) as caught:
        check(path)
    assert words in str(caught.value)
