"""What does not fit a model is refused in its plan."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cell import fits
from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.errors import ConfigError
from harness.models import streaming
from harness.suites import audit
from harness.suites.base import Facts
from quant.pruning import PRUNED
from quant.transforms.foreseen import Input
from tests.quant.architectures import tiny_model as tiny

Make = Callable[..., CellConfig]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=gptq", "calib.length=65"], "calib.length=65 is more than the 64 tokens"),
        (["model.context=65"], "windows of 65 tokens do not fit a model with 64 positions"),
    ],
)
def test_windows_beyond_the_context_are_refused_in_the_plan(
    tiny_cell: Make, overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(tiny_cell(*overrides))
    resolve(tiny_cell("method=gptq", "calib.length=64", "model.context=64"))


def test_a_mixture_is_refused_in_the_plan_where_inputs_are_compared(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = streaming.model_facts
    mixture = lambda model: replace(  # noqa: E731
        facts(model), shape=replace(facts(model).shape, routed=(((32, 2),),))
    )
    config = tiny_cell("method=gptaq")
    resolve(config)
    monkeypatch.setattr(fits, "model_facts", mixture)
    with pytest.raises(ConfigError, match=r"method=gptaq .* a mixture of experts.*use method=gptq"):
        resolve(config)
    resolve(tiny_cell("method=gptq"))


def test_a_head_that_the_model_does_not_have_is_refused_in_the_plan(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_cell("method=rtn", "scheme=w4_head_w8")
    resolve(config)
    facts = streaming.model_facts
    without = lambda model: replace(  # noqa: E731
        facts(model), shape=replace(facts(model).shape, head=None)
    )
    monkeypatch.setattr(fits, "model_facts", without)
    with pytest.raises(ConfigError, match="only a linear layer called lm_head or embed_out"):
        resolve(config)
    resolve(tiny_cell("method=rtn", "scheme=w4"))


def test_a_rotation_of_a_width_without_factors_is_refused_in_the_plan(tiny_cell: Make) -> None:
    rotated = ["method=gptq", "transform=[hadamard]"]
    resolve(tiny_cell(*rotated))
    words = r"hadamard cannot cut \d+ inputs into blocks of block_size=512: use a divisor such as"
    with pytest.raises(ConfigError, match=words):
        resolve(tiny_cell(*rotated, "transform.hadamard.block_size=512"))


def test_a_budget_of_pruning_that_cannot_be_met_is_refused_in_the_plan(tiny_cell: Make) -> None:
    cut = ["method=gptq", "scheme=w4", "transform=[block_removal]"]
    resolve(tiny_cell(*cut))
    words = "transform=block_removal on model=.*, scheme=w4: block_removal "
    with pytest.raises(ConfigError, match=words + "would remove nothing: the whole model has"):
        resolve(tiny_cell(*cut, "transform.block_removal.bits=8"))
    with pytest.raises(ConfigError, match=words + "cannot meet its budget bits=0.5: at this"):
        resolve(tiny_cell(*cut, "transform.block_removal.bits=0.5"))


def test_parts_that_a_model_does_not_have_alone_are_named_in_the_plan(tiny_cell: Make) -> None:
    cut = ["method=gptq", "scheme=w4", "transform=[obs_pruning]"]
    words = (
        "transform=obs_pruning on model=.*: obs_pruning cannot remove heads of opt: its attention "
        "has no projections .* of their own; set heads=false, or use transform=.block_removal"
    )
    with pytest.raises(ConfigError, match=words):
        resolve(tiny_cell(*cut))
    only = [*cut, "transform.obs_pruning.heads=false"]
    resolve(tiny_cell(*only, "transform.obs_pruning.bits=4"))
    with pytest.raises(ConfigError, match="are left when every block keeps some of what is rem"):
        resolve(tiny_cell(*only, "transform.obs_pruning.bits=1.5"))
    with pytest.raises(ConfigError, match="leave nothing to remove"):
        resolve(tiny_cell(*only, "transform.obs_pruning.columns=false"))


@pytest.fixture
def gemma2(tmp_path: Path, tiny_model: Path) -> Path:
    """Norms in front of the layers and behind them, no biases."""
    folder = tmp_path / "gemma2"
    tiny("gemma2", vocab_size=2048).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder / name)
    return folder


def test_transforms_that_a_family_cannot_take_are_refused_in_the_plan(
    gemma2: Path, tiny_cell: Make
) -> None:
    given = [f"model.path={gemma2}", "model.name=gemma2", "method=gptq"]
    resolve(tiny_cell(*given, "transform=[awq]"))
    resolve(tiny_cell(*given, "transform=[smoothquant]"))
    with pytest.raises(
        ConfigError,
        match=r"transform=residual_hadamard on model=gemma2: residual_hadamard cannot rotate the "
        r"residual stream of this model: model\.layers\.0\.post_attention_layernorm normalizes the "
        r"output of self_attn\.o_proj .*; leave it out, or rotate .* transform=\[hadamard\]\.$",
    ):
        resolve(tiny_cell(*given, "transform=[residual_hadamard]"))
    with pytest.raises(
        ConfigError, match=r"transform=repquant on model=gemma2: .* has no bias .* use shift=false"
    ):
        resolve(tiny_cell(*given, "transform=[repquant]"))
    resolve(tiny_cell(*given, "transform=[repquant]", "transform.repquant.shift=false"))


def test_a_transform_that_would_change_nothing_is_refused_in_the_plan(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = streaming.model_facts
    behind = (Input("a", True, "no module of the block makes its input", further=True),)
    monkeypatch.setattr(fits, "model_facts", lambda model: replace(facts(model), inputs=behind))
    given = ["method=gptq", "transform=[smoothquant]"]
    with pytest.raises(ConfigError, match=r"changed no layer of this model .* keep its changes"):
        resolve(tiny_cell(*given))
    resolve(tiny_cell(*given, "transform.smoothquant.keep=where_needed"))
    resolve(tiny_cell("method=gptq", "transform=[awq]"))
    monkeypatch.setattr(fits, "model_facts", lambda model: replace(facts(model), inputs=()))
    resolve(tiny_cell(*given))  # it could not be looked at: the quantization says so


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=gptaq", "transform=[repquant]"], "repquant shifts inputs, and solver gptaq"),
        (["method=gptq", "transform=[awq,residual_hadamard]"], "list it first"),
        (["method=gptq", "transform=[hadamard,awq]"], "list awq before hadamard"),
        (["method=gptq", "transform=[repquant,smoothquant]"], "list smoothquant before repquant"),
    ],
)
def test_what_no_quantization_takes_together_is_refused_before_any_table(
    overrides: list[str], words: str, tiny_cell: Make
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(tiny_cell(*overrides))


LAYERS = "scheme.layers={*.fc1: w8g32}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["method=gptq", "scheme=w4g32", LAYERS],
            r"several schemes \(w4g32, w8g32\)",
        ),
        (
            ["method=gptq", "scheme=auto", "scheme.bits=4"],
            r"have several schemes \(.*\), and kern",
        ),
        (
            ["method=svd", "scheme=budget"],
            "are products of factors, and kern",
        ),
    ],
)
def test_kernels_of_several_schemes_are_refused_in_the_plan(
    overrides: list[str], words: str, tiny_cell: Make
) -> None:
    timed = ["suite=[perplexity_documents,latency,kernels]"]
    with pytest.raises(ConfigError, match="suite.kernels: model=tiny: its layers .*" + words):
        resolve(tiny_cell(*overrides, *timed))
    resolve(tiny_cell("method=gptq", "scheme=w4g32", *timed))


def test_a_pattern_that_all_layers_have_leaves_one_scheme(tiny_cell: Make) -> None:
    every = "scheme.layers={*: w8g32}"
    timed = ["suite=[perplexity_documents,latency,kernels]"]
    resolve(tiny_cell("method=gptq", "scheme=w4g32", every, *timed))


def test_an_audit_of_layers_that_are_not_those_of_the_base_is_refused_in_the_plan(
    tiny_cell: Make,
) -> None:
    audited = ["method=gptq", "scheme=w4", "suite=[perplexity_documents,latency,audit]"]
    resolve(tiny_cell(*audited))
    resolve(tiny_cell(*audited, "transform=[equalize]"))
    with pytest.raises(ConfigError, match="block_removal removes parts of the model, so its lay"):
        resolve(tiny_cell(*audited, "transform=[block_removal]"))
    with pytest.raises(ConfigError, match="hadamard is kept in front of layers, so their weights"):
        resolve(tiny_cell(*audited, "transform=[hadamard]"))


def test_an_audit_of_a_pruned_checkpoint_is_refused_in_the_plan() -> None:
    facts = Facts("suite.audit", "pruned", {PRUNED: {"layers": {}}})
    with pytest.raises(ConfigError, match="parts of the model were removed before it was quanti"):
        audit.check(audit.Config(), facts)
