"""QuantizationConfig: parts that fit together, and an identity in JSON."""

import importlib
import json
import pickle
from dataclasses import dataclass, field, replace

import pytest
import torch

from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.errors import CalibrationError, QuantizationError
from quant.scheme import Scheme
from quant.solvers import gptq, random, rtn
from quant.solvers.base import NoOptions, Solver
from quant.transforms import awq, equalize, hadamard, repquant
from quant.transforms.base import Group, Statistics, Transform
from tests.quant.architectures import tiny_model

W4 = Scheme(4)


@dataclass(frozen=True)
class Required:
    """Options without a default."""

    share: float


@dataclass(frozen=True)
class Opaque:
    """Options that JSON does not hold."""

    what: object = field(default_factory=object)


@dataclass
class Changing:
    """Options that anybody may change."""

    share: float = 0.5


def test_defaults_are_those_of_the_parts() -> None:
    config = QuantizationConfig(gptq.SOLVER, W4, transforms=((equalize.TRANSFORM, None),))
    assert config.options == gptq.Options()
    assert config.transforms == ((equalize.TRANSFORM, equalize.Options()),)
    assert QuantizationConfig(rtn.SOLVER, W4).options == NoOptions()
    assert replace(config, options=gptq.Options(damping=0.1)).options.damping == 0.1


def test_what_a_run_must_do_follows_from_the_parts() -> None:
    equalized = ((equalize.TRANSFORM, None),)
    assert QuantizationConfig(gptq.SOLVER, W4).needs_calibration
    assert not QuantizationConfig(rtn.SOLVER, W4).needs_calibration
    assert QuantizationConfig(rtn.SOLVER, W4, transforms=equalized).needs_calibration
    assert QuantizationConfig(gptq.SOLVER, W4, gptq.Options(true_sequential=True)).sequential
    assert not QuantizationConfig(gptq.SOLVER, W4).sequential
    assert not QuantizationConfig(rtn.SOLVER, W4).sequential


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gptq", W4), r"solver='gptq' is not a Solver; pass the SOLVER"),
        ((gptq.SOLVER, "w4"), r"scheme='w4' is not a Scheme; use"),
        ((gptq.SOLVER, W4, NoOptions()), r"solver gptq takes options of type .*gptq\.Options, not"),
        ((rtn.SOLVER, W4, gptq.Options()), r"solver rtn takes options of type .*NoOptions, not"),
        ((replace(rtn.SOLVER, options=Required), W4), r"solver rtn has options without a default"),
        ((replace(rtn.SOLVER, options=Opaque), W4), r"solver rtn: its options .* as JSON .*; use"),
        ((gptq.SOLVER, W4, None, ("equalize",)), r"transforms contains 'equalize', .*; pass"),
        ((gptq.SOLVER, W4, None, (equalize.TRANSFORM,)), r"transforms contains .* not a pair"),
        (
            (gptq.SOLVER, W4, None, ((equalize.TRANSFORM, gptq.Options()),)),
            r"transform equalize takes options of type .*equalize\.Options, not",
        ),
        ((gptq.SOLVER, W4, None, (), "auto", 0), "batch_tokens=0 is not a number of tokens; use"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_sentence(arguments, words) -> None:
    with pytest.raises(QuantizationError, match=words) as caught:
        QuantizationConfig(*arguments)
    assert str(caught.value).endswith(".")
    assert ". " not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Solver("s", "S", "solve"), r"solver s: solve='solve' is not a function; pass"),
        (lambda: replace(rtn.SOLVER, options=Changing), r"solver rtn: options=.*Changing.*frozen"),
        (lambda: replace(rtn.SOLVER, options=None), r"solver rtn: options=None is not a frozen"),
        (lambda: replace(rtn.SOLVER, prepare=print), r"rtn has prepare, .*needs_calibration=True"),
        (lambda: Transform("t", "T", None), r"transform t: change=None is not a function; pass"),
        (lambda: replace(equalize.TRANSFORM, options=Changing), r"transform equalize: options="),
    ],
)
def test_incomplete_specs_are_refused(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_solver_that_needs_data_is_refused_without_any() -> None:
    for config in (
        QuantizationConfig(gptq.SOLVER, W4),
        QuantizationConfig(rtn.SOLVER, W4, transforms=((equalize.TRANSFORM, None),)),
    ):
        with pytest.raises(CalibrationError, match="there is no calibration window"):
            quantize_model(tiny_model("llama"), [], config)


def test_the_identity_is_json_and_changes_with_everything_that_decides() -> None:
    plain = QuantizationConfig(gptq.SOLVER, W4)
    others = [
        replace(plain, options=gptq.Options(act_order=True)),
        replace(plain, options=gptq.Options(damping_ladder=(0.1,))),
        replace(plain, solver=replace(gptq.SOLVER, version=3)),
        replace(plain, solver=rtn.SOLVER, options=None),
        replace(plain, scheme=Scheme(3)),
        replace(plain, scheme=Scheme(4, scale_dtype="bfloat16")),
        replace(plain, transforms=((equalize.TRANSFORM, None),)),
        replace(plain, transforms=((equalize.TRANSFORM, equalize.Options(0.75)),)),
        replace(plain, kernel="reference"),
        replace(plain, batch_tokens=100),
        replace(plain, solver=replace(gptq.SOLVER, solve=foreign)),
    ]
    texts = {json.dumps(each.identity(), sort_keys=True) for each in (plain, *others)}
    assert len(texts) == len(others) + 1
    assert plain.identity()["solver"]["code"] is None
    assert len(others[-1].identity()["solver"]["code"]) == 64


def find(*_: object) -> None:
    """Levels of somebody else find grids here."""


def test_levels_of_somebody_else_are_in_the_identity_with_their_code() -> None:
    levels = replace(W4.kind, name="theirs", prefix="theirs", find=find)
    config = QuantizationConfig(rtn.SOLVER, Scheme(4, 16, levels=levels))
    scheme = json.loads(json.dumps(config.identity()))["scheme"]
    assert (scheme["levels"], scheme["bits"], scheme["group_size"]) == ("theirs", 4, 16)
    assert len(scheme["levels code"]) == 64
    assert QuantizationConfig(rtn.SOLVER, W4).identity()["scheme"]["levels code"] is None


def foreign(*_: object) -> None:
    """A solver's function that is not of quant: its file is part of the identity."""


def test_a_config_travels_between_processes() -> None:
    config = QuantizationConfig(gptq.SOLVER, W4, transforms=((equalize.TRANSFORM, None),))
    assert pickle.loads(pickle.dumps(config)) == config


def test_tables_name_the_options_that_are_not_the_defaults() -> None:
    assert gptq.describe(gptq.Options()) == []
    many = gptq.Options(0.1, (0.5, 1.0), 64, True, False, "stale", True)
    assert gptq.describe(many) == [
        "damp 0.1", "damp ladder [0.5, 1.0]", "block 64", "act-order", "stale grids",
        "true-sequential",
    ]  # fmt: skip
    assert gptq.describe(gptq.Options(static_groups=True)) == ["static groups"]
    assert rtn.SOLVER.describe(NoOptions()) == []


def test_equal_options_are_equal_however_they_were_written() -> None:
    assert gptq.Options(damping_ladder=[0.1]) == gptq.Options(damping_ladder=(0.1,))  # type: ignore[arg-type]
    assert hash(gptq.Options(damping_ladder=[0.1]))  # type: ignore[arg-type]


def test_random_codes_read_no_weight_and_are_told_by_the_name_of_the_layer() -> None:
    def codes(weights: int) -> torch.Tensor:
        model = tiny_model("llama", seed=weights)
        result = quantize_model(model, [], QuantizationConfig(random.SOLVER, Scheme(4, 16)))
        assert {layer.method for layer in result.layers} == {"random"}
        first, second = (result.weights[f"model.layers.{i}.mlp.up_proj"] for i in (0, 1))
        assert not torch.equal(first.codes, second.codes)
        assert first.dequantize().var().item() == pytest.approx(1 / 32, rel=0.2)
        return first.codes

    assert torch.equal(codes(0), codes(1))


def test_a_shift_is_refused_for_a_solver_that_compares_inputs() -> None:
    from quant.solvers import qronos
    from quant.transforms import repquant

    with pytest.raises(QuantizationError, match="repquant shifts inputs, and solver qronos"):
        QuantizationConfig(qronos.SOLVER, Scheme(3), transforms=((repquant.TRANSFORM, None),))
    scales = repquant.Options(shift=False)
    QuantizationConfig(qronos.SOLVER, Scheme(3), transforms=((repquant.TRANSFORM, scales),))


def test_a_fold_behind_a_kept_change_is_refused() -> None:
    """Nothing in front of the layers can take it in, so it would change nothing."""
    scheme, rotated = Scheme(4), (hadamard.TRANSFORM, None)
    folds, keeps = (awq.TRANSFORM, None), (awq.TRANSFORM, awq.Options(keep="where_needed"))
    words = "awq folds its changes .* hadamard before it keeps .* list awq before hadamard"
    with pytest.raises(QuantizationError, match=words):
        QuantizationConfig(gptq.SOLVER, scheme, transforms=(rotated, folds))
    QuantizationConfig(gptq.SOLVER, scheme, transforms=(folds, rotated))
    some = (hadamard.TRANSFORM, hadamard.Options(layers=("down_proj",)))
    QuantizationConfig(gptq.SOLVER, scheme, transforms=(some, folds))
    always = (equalize.TRANSFORM, equalize.Options(keep="always"))
    with pytest.raises(QuantizationError, match=r"equalize before it keeps"):
        QuantizationConfig(gptq.SOLVER, scheme, transforms=(always, folds))
    QuantizationConfig(gptq.SOLVER, scheme, transforms=(always, keeps))
    for each in (rotated, some):
        with pytest.raises(QuantizationError, match=r"awq reads statistics .* behind hadamard"):
            QuantizationConfig(gptq.SOLVER, scheme, transforms=(each, keeps))
    shifted = (repquant.TRANSFORM, None)
    with pytest.raises(QuantizationError, match=r"list awq before repquant"):
        QuantizationConfig(gptq.SOLVER, scheme, transforms=(shifted, folds))
    scaled = (repquant.TRANSFORM, repquant.Options(shift=False))
    QuantizationConfig(gptq.SOLVER, scheme, transforms=(scaled, folds))


@pytest.mark.parametrize("part", ["awq", "equalize", "hadamard", "repquant", "smoothquant"])
def test_transforms_declare_whether_their_changes_say_statistics(part: str) -> None:
    module = importlib.import_module(f"quant.transforms.{part}")
    values = torch.randn(64, 8, dtype=torch.float64).abs().cumsum(1)
    values[:, 0] *= 100  # an outlier, so that every transform finds something to change
    statistics = Statistics(values.mean(0), values.abs().mean(0), values.amin(0), values.amax(0))
    group = Group(
        "a", ("a",), (torch.randn(4, 8),), values.T @ values, Scheme(4), statistics, biased=True
    )
    options = module.TRANSFORM.options()
    change = module.change(group, options)
    assert change is not None
    assert hasattr(change, "statistics") == module.TRANSFORM.says_statistics(options)
