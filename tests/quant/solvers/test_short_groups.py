"""A last group that is shorter than the others, through both solvers, against the oracle."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import columns as loops
from quant.solvers import rtn
from quant.solvers.gptq import Options
from tests.oracles import textbook_gptq as textbook
from tests.quant.solving import solve

SCHEMES = [
    Scheme(3, 32),
    Scheme(4, 20, symmetric=True),
    Scheme(5, 7),
    Scheme(6, 13, grid="mse"),
    Scheme(7, 47, scale_dtype="float32"),
    Scheme(4, 128),  # the only group is short
    Scheme(2, 9, levels="ternary"),
]
MODES = {
    "natural": {},
    "act_order": {"act_order": True},
    "static": {"static_groups": True},
    "act_order_static": {"act_order": True, "static_groups": True},
    "stale": {"group_grid": "stale"},
    "act_order_stale": {"act_order": True, "group_grid": "stale"},
}


def layer(outputs, inputs, seed=0):
    """Weight [out, in] and Hessian [in, in], float64, of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    activations = random(4 * inputs, inputs) @ (random(inputs, inputs) / inputs**0.5)
    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(activations * random(inputs).exp() + random(inputs))
    return random(outputs, inputs) * 0.1, hessian.matrix()


def oracle(weight, hessian, scheme, options=None):
    options = options or Options(static_groups=True)
    return textbook.solve(
        weight.numpy(),
        hessian.numpy(),
        scheme.bits,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
        ternary=scheme.levels == "ternary",
        mse=scheme.grid == "mse",
        dtype=scheme.scale_dtype,
        act_order=options.act_order,
        static_groups=options.static_groups,
        stale_block=options.block_size if options.group_grid == "stale" else None,
    )


def same(quantized, answer):
    assert torch.equal(quantized.codes, torch.from_numpy(answer.codes).to(torch.uint8))
    assert torch.equal(quantized.scale.double(), torch.from_numpy(answer.scales))
    assert quantized.column_groups().tolist() == answer.group_of.tolist()
    np.testing.assert_allclose(quantized.dequantize().numpy(), answer.values, rtol=2e-7)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_rounding_equals_the_oracle(scheme):
    weight, _ = layer(5, 48)
    assert scheme.short_group(48)
    found = rtn.solve(weight, scheme).weight
    assert found.scale.shape == (5, -(-48 // scheme.group_size))
    same(found, oracle(weight, torch.eye(48), scheme))


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_gptq_equals_the_oracle(monkeypatch, scheme, name, kernel):
    monkeypatch.setattr(loops, "PANEL", 1)
    options = Options(block_size=16, **MODES[name])
    weight, hessian = layer(4, 48, seed=scheme.bits)
    solution = solve(weight, hessian, scheme, options, kernel=kernel)
    answer = oracle(weight, hessian, scheme, options)
    same(solution.weight, answer)
    assert solution.loss == pytest.approx(answer.loss, rel=1e-9)


@pytest.mark.parametrize("name", ["natural", "act_order", "act_order_static", "stale"])
def test_float32_on_every_kernel_keeps_to_float64(name):
    """Width 576, as SmolLM2-135M has it, in groups of 128."""
    weight, hessian = layer(40, 576)
    scheme, options = Scheme(4, 128), Options(**MODES[name])
    exact = solve(weight, hessian, scheme, options, kernel="reference")
    for kernel in ("reference", "auto"):
        found = solve(weight.float(), hessian.float(), scheme, options, kernel=kernel)
        assert (found.weight.codes == exact.weight.codes).float().mean() >= 0.998
        assert found.loss == pytest.approx(exact.loss, rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 60),
    size=st.integers(1, 70),
    block_size=st.integers(1, 70),
    name=st.sampled_from([name for name in MODES if "stale" not in name]),
    seed=st.integers(0, 99),
)
def test_the_block_size_changes_nothing(inputs, size, block_size, name, seed):
    weight, hessian = layer(3, inputs, seed)
    scheme = Scheme(3, size)
    options = Options(block_size=64, **MODES[name])
    whole = solve(weight, hessian, scheme, options)
    lazy = solve(weight, hessian, scheme, replace(options, block_size=block_size))
    assert torch.equal(whole.weight.codes, lazy.weight.codes)
    assert torch.equal(whole.weight.scale, lazy.weight.scale)
    assert whole.loss == pytest.approx(lazy.loss, rel=1e-9)


@given(st.integers(1, 300), st.integers(1, 140), st.integers(1, 310), st.booleans())
def test_panels_hold_every_column_once_and_cut_no_group(columns, block_size, size, stale):
    blocks = loops._blocks(columns, block_size, None if stale else size)
    panels = loops._panels(blocks, size)
    assert [block for panel in panels for block in panel] == blocks
    assert [end for _, end in blocks[:-1]] == [start for start, _ in blocks[1:]]
    assert (blocks[0][0], blocks[-1][1]) == (0, columns)
    for panel in panels[:-1]:
        assert panel[-1][1] % size == 0
    if not stale:  # a group that begins inside a block ends in it
        for start, end in blocks:
            begun = end // size * size
            assert begun <= start or begun == end or end == columns
