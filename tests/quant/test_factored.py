"""Factored weights, the layer that multiplies them, and budgets."""

import copy

import pytest
import torch

from quant.budget import Budget, parse_scheme
from quant.errors import SchemeError
from quant.factored import FactoredLinear
from quant.forms import base, dense_sparse, low_rank
from quant.forms.base import forms
from quant.scheme import Scheme
from quant.solvers import dense_sparse as fitted
from quant.solvers import svd
from quant.weight import FactoredWeight
from tests.quant.layers_with_inputs import layer_of


def low() -> FactoredWeight:
    return svd.solve(layer_of(12, 16)[0], Budget(8)).weight


def sparse() -> FactoredWeight:
    weight, hessian = layer_of(12, 16)
    return fitted.solve(weight, Budget(8), fitted.prepare(hessian)).weight


@pytest.mark.parametrize("make", [low, sparse])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_layer_multiplies_as_its_dense_weight(make, dtype):
    weight = make()
    bias = torch.randn(12)
    layer = FactoredLinear(weight, bias)
    x = torch.randn(2, 5, 16).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    expected = (x.to(wide) @ weight.dequantize().to(wide).T + bias.to(wide)).to(dtype)
    found = layer(x)
    assert found.dtype == dtype
    about = {} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}  # dense: in float32
    torch.testing.assert_close(found, expected, **about)
    assert layer.stored_bits == sum(8 * part.nbytes for part in weight.tensors.values())
    assert layer.way.startswith("two products")
    assert not list(layer.parameters()), "no dense copy"
    assert sum(8 * buffer.nbytes for buffer in layer.buffers()) == layer.stored_bits + 32 * 12


@pytest.mark.parametrize("make", [low, sparse])
def test_a_cast_changes_the_bias_alone(make):
    weight = make()
    layer = FactoredLinear(weight, torch.ones(12)).to(torch.bfloat16)
    assert layer.bias.dtype == torch.bfloat16
    again = layer.quantized_weight()
    for name, tensor in weight.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
    loaded = FactoredLinear(make())
    loaded.load_state_dict(copy.deepcopy(FactoredLinear(weight).state_dict()))
    assert torch.equal(loaded.dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("left"), "has right where left, right belong"),
        (lambda t: t.update(left=t["left"].float()), r"has left float32 \[12, \d\] where float16"),
        (lambda t: t.update(left=t["left"][:, :1]), "left of rank 1 and right of rank"),
        (lambda t: t.update(right=t["right"] * torch.inf), "NaN or infinite values in right"),
        (lambda t: t.update(right=t["right"][:0]), r"has right float16 \[0, 16\]"),
    ],
)
def test_low_rank_tensors_that_do_not_fit_are_refused(change, words):
    tensors = dict(low().tensors)
    change(tensors)
    with pytest.raises(ValueError, match=words):
        FactoredWeight(low_rank.FORM, tensors, Budget(8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(group=torch.tensor([5], dtype=torch.uint8)), r"group \[5\], which is"),
        (lambda t: t.update(values=t["values"][:2]), "do not fit each other"),
        (lambda t: t.update(dense=t["dense"][:, :1]), "do not fit each other"),
        (lambda t: t.update(places=torch.zeros_like(t["places"])), "places that do not rise"),
    ],
)
def test_sparse_tensors_that_do_not_fit_are_refused(change, words):
    tensors = dict(sparse().tensors)
    change(tensors)
    with pytest.raises(ValueError, match=words):
        FactoredWeight(dense_sparse.FORM, tensors, Budget(8))


def test_forms_are_found_by_being_there():
    found = forms()
    assert {"low_rank", "dense_sparse"} <= found.keys()
    assert all(form.name == name for name, form in found.items())
    assert all(isinstance(form, base.Form) for form in found.values())
    firsts = [f"{form.name}.{form.first}" for form in found.values()]
    assert len(set(firsts)) == len(firsts)


def test_a_budget_has_a_name_that_is_read_back():
    for bits in (4.3125, 3.296875, 8.0, 0.25):
        assert parse_scheme(Budget(bits).name) == Budget(bits)
    assert parse_scheme("w4g64") == Scheme(4, 64)
    assert Budget(4).name == "budget4"
    assert Budget(4.25).most_bytes(3, 5) == 7  # 63.75 bits
    with pytest.raises(SchemeError, match="not the name of a scheme"):
        parse_scheme("budgetx")


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0, "budget=0 is not a number of bits per weight to save any"),
        (16, "fewer than 16"),
        (float("nan"), "budget=nan"),
        (True, "budget=True is not a number"),
        ("4", "budget='4' is not a number"),
        (4.12345678901234, r"more than ten digits.*use 4\.123456789"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(bits, words):
    with pytest.raises(SchemeError, match=words):
        Budget(bits)
