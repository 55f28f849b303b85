"""Every architecture goes through quantization, a folder and QuantLinear with the same logits."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import quant
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.linear import QuantLinear
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.quant.architectures import CONFIGS, VOCABULARY, tiny_model

SCHEMES = (Scheme(3, group_size=8), Scheme(4), Scheme(2, group_size=8, levels="ternary"))


@pytest.mark.parametrize(("index", "name"), list(enumerate(CONFIGS)))
def test_tiny_models(tmp_path: Path, index: int, name: str) -> None:
    model = tiny_model(name)
    plan = QuantizationConfig(rtn.SOLVER, SCHEMES[index % len(SCHEMES)])
    result = quantize_model(model, [], plan)
    folder = quant.save(tmp_path / name, model, result.weights, method={"name": "rtn"})
    loaded = quant.load(folder)
    tokens = torch.randint(3, VOCABULARY, (2, 21), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    layers = [n for n, module in loaded.named_modules() if isinstance(module, QuantLinear)]
    assert sorted(layers) == sorted(result.weights)


@pytest.mark.realdata
def test_a_trained_model_with_its_tokenizer(tmp_path: Path, shared: Path) -> None:
    source = shared / "models" / "tinystories-656k"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(4)))
    folder = tmp_path / "artifact"
    quant.save(folder, model, result.weights, method={"name": "rtn"}, tokenizer=source)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("Once upon a time there was a little dog.", return_tensors="pt").input_ids
    original = AutoTokenizer.from_pretrained(source)
    assert original.decode(tokens[0]) == tokenizer.decode(tokens[0])
    loaded = quant.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=1e-4)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
