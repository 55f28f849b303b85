"""What was meant by names that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.help import options
from harness.config.hints import key_hint, option_hint
from harness.config.options import build_options
from harness.errors import ConfigError
from harness.suites.kv_cache import Config
from quant.errors import SchemeError
from quant.kv.base import KvCacheError
from quant.kv.support import find_scheme
from quant.scheme import Scheme


@pytest.mark.parametrize(
    ("group", "name", "words"),
    [
        ("scheme", "mxfp4", " (did you mean mxfp4_even, mxfp4_floor or mxfp4_rceil?)"),
        ("scheme", "int4", " (did you mean w4, or with groups w4g128?)"),
        ("scheme", "4bit", " (did you mean w4, or with groups w4g128?)"),
        ("scheme", "W4", " (did you mean w4?)"),
        (
            "scheme",
            "w4a8",
            " (inputs are rounded by a transform: scheme=w4 transform=[round_inputs] "
            "transform.round_inputs.bits=8)",
        ),
        ("scheme", "nvfp4_head_w8g32", ""),  # the error of the name itself says what to write
        ("scheme", "w4g12", " (did you mean w4g128?)"),
        ("scheme", "gptq", " (gptq is a method: write method=gptq)"),
        ("scheme", "fp16", " (that is scheme=w16 here)"),
        ("method", "GPTQ", " (did you mean gptq?)"),
        ("method", "gptq-actorder", " (did you mean gptq_actorder?)"),
        ("method", "awq", " (awq is a transform: write transform=[awq])"),
        ("transform", "QuaRot", " (that is transform=[residual_hadamard,hadamard] here)"),
        ("transform", "gptq", " (gptq is a method: write method=gptq)"),
        ("suite", "kvcache", " (did you mean kv_cache?)"),
        ("suite", "ppl", " (that is suite=[perplexity] here)"),
        (
            "suite",
            "wikitext2",
            " (wikitext2 is a text: write suite=[perplexity] "
            "suite.perplexity.protocols=[wikitext2])",
        ),
        ("runtime", "gpu", " (that is runtime=cuda here)"),
        (
            "model",
            "meta-llama/Llama-3.2-1B",
            " (did you mean llama-3.2-1b? Any model of the hub: model=hub "
            "model.id=meta-llama/Llama-3.2-1B)",
        ),
        ("model", "opt-126m", " (did you mean opt-125m?)"),
        ("model", "zzzz", ""),
    ],
)
def test_an_option_that_does_not_exist_leads_on(group: str, name: str, words: str) -> None:
    assert option_hint(group, name, options(group)) == words


def test_a_folder_is_no_name_of_a_model(tmp_path: Path) -> None:
    said = option_hint("model", str(tmp_path), options("model"))
    assert said == f" (a folder is read by model=local model.path={tmp_path})"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("bits", " (did you mean scheme.bits?)"),
        ("device", " (did you mean runtime.device?)"),
        ("method.group_size", " (did you mean scheme.group_size?)"),
        ("damping", " (did you mean method.damping?)"),
        ("calib.nsamples", " (that is calib.sequences here)"),
        ("scheme.groupsize", " (that is scheme.group_size here)"),
        ("method.desc_act", " (that is method.act_order here)"),
        ("calib.pth", " (did you mean path?)"),
        ("zzzz", ""),
    ],
)
def test_a_key_that_does_not_exist_leads_on(key: str, words: str) -> None:
    assert key_hint(key, ["path", "sequences"]) == words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mxfp4", "begin its name with mxfp4g32_floor or mxfp4g32_even or mxfp4g32_rceil"),
        ("nvfp4_head_w8g32", "begin its name with nvfp4g16"),
        ("mxfp4g16_even", "begin its name with mxfp4g32"),
    ],
)
def test_the_name_of_a_scheme_is_told_in_names(name: str, words: str) -> None:
    with pytest.raises(SchemeError) as said:
        Scheme.parse(name)
    assert str(said.value).endswith(f": {words}.")
    for each in words.removeprefix("begin its name with ").split(" or "):
        Scheme.parse(each)


def test_a_kv_scheme_and_a_single_value_lead_on() -> None:
    with pytest.raises(KvCacheError, match=r"no kv scheme kiwi \(did you mean kivi\?\): choose"):
        find_scheme("kiwi")
    with pytest.raises(ConfigError, match=r"a single value is no list; it takes a list such as"):
        build_options(Config, {"schemes": "kivi"}, "suite.kv_cache", "kv_cache")
