"""The metrics of a quantization say how far its solver was from the textbook."""

import pytest

from harness.suites import quantization_cost
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import random, rtn
from tests.quant.architectures import tiny_model


def gaps(solver):
    result = quantize_model(tiny_model("llama"), [], QuantizationConfig(solver, Scheme(3)))
    found = quantization_cost.metrics(result, 1, {})
    checked = [each for each in result.layers if each.oracle_gap is not None]
    return checked, [each for each in found if each.name == "oracle_gap"]


def test_the_largest_gap_is_a_metric_that_names_the_layers():
    checks, (gap,) = gaps(rtn.SOLVER)
    assert gap.value == max((each.oracle_gap for each in checks), key=abs)
    assert (gap.n, gap.n_unit) == (len(checks), "layers")
    assert gap.notes["layers"] == ", ".join(each.name for each in checks)


def test_a_solver_without_an_oracle_has_no_gap():
    assert gaps(random.SOLVER) == ([], [])


def test_the_entropy_of_all_codes_is_weighted_by_their_number():
    result = quantize_model(tiny_model("llama"), [], QuantizationConfig(rtn.SOLVER, Scheme(3)))
    (metric,) = (
        each for each in quantization_cost.metrics(result, 1, {}) if each.name == "entropy_bits"
    )
    sizes = [each.outputs * each.inputs for each in result.layers]
    bits = [each.bits_per_weight - 3 + each.entropy for each in result.layers]
    mean = sum(n * b for n, b in zip(sizes, bits, strict=True)) / sum(sizes)
    assert metric.value == pytest.approx(mean)
    assert all(0 < each.entropy < 3 for each in result.layers)
