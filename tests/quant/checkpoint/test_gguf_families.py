"""Every family of GGUF against the transformers model of the same dequantized weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

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
