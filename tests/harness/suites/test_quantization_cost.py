"""The metrics of a quantization say how far its solver was from the textbook."""

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
