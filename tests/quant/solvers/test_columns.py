"""The loop by panels and by the fused operator, against Algorithm 1 in plain PyTorch."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cuda_ext import ops
from quant.errors import SingularHessianError
from quant.hessian import Hessian, factorize
from quant.scheme import Scheme
from quant.solvers import columns as loops
from quant.solvers import gptq
from tests.oracles import textbook_gptq as textbook
from tests.oracles.column_blocks import FUSED
from tests.quant.solving import solve

compiled = pytest.mark.skipif(
    ops.why_unavailable(torch.device("cpu")) is not None, reason="no compiler: no kernels"
)
NO_CHECKS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCHEMES = [
    Scheme(2),
    Scheme(4, 8),
    Scheme(3, 24, symmetric=True),
    Scheme(8, 48),
    Scheme(3, 16, grid="mse"),
    Scheme(2, 8, levels="ternary"),
]
MODES = [
    {},
    {"act_order": True},
    {"static_groups": True},
    {"act_order": True, "static_groups": True},
    {"group_grid": "stale"},
    {"act_order": True, "group_grid": "stale"},
]


def layer(outputs, inputs, seed=0, dead=()):
    """Weight [out, in] and Hessian [in, in], float64, of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    activations = random(3 * inputs, inputs) @ (random(inputs, inputs) / inputs**0.5)
    activations = activations * random(inputs).exp() + random(inputs)
    activations[:, list(dead)] = 0
    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(activations)
    return random(outputs, inputs) * 0.1, hessian.matrix()


@compiled
@pytest.mark.skipif(not FUSED, reason="addcmul_ rounds twice here")
@NO_CHECKS
@given(
    scheme=st.sampled_from(SCHEMES),
    mode=st.sampled_from(MODES),
    block_size=st.sampled_from([5, 16, 24, 48, 96, 128]),
    outputs=st.sampled_from([1, 3, 65]),
    panel=st.sampled_from([1, 20, 48, 128]),
)
@example(
    scheme=Scheme(8, 48, scale_dtype="float16"),
    mode={"group_grid": "stale"},
    block_size=5,
    outputs=1,
    panel=1,
)
def test_the_operator_changes_no_bit(monkeypatch, scheme, mode, block_size, outputs, panel):
    monkeypatch.setattr(loops, "PANEL", panel)
    weight, hessian = (part.float() for part in layer(outputs, 96, seed=block_size, dead=(3, 50)))
    options = gptq.Options(block_size=block_size, **mode)
    found = solve(weight, hessian, scheme, options, kernel="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(loops, "fused_columns", loops.plain_columns)
        expected = solve(weight, hessian, scheme, options, kernel="cpu")
    assert torch.equal(found.weight.codes, expected.weight.codes)
    assert torch.equal(found.weight.scale, expected.weight.scale)
    assert found.loss == expected.loss
    index, other = found.weight.group_index, expected.weight.group_index
    assert (index is None and other is None) or torch.equal(index, other)


@pytest.mark.parametrize("mode", MODES, ids=json.dumps)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_panels_equal_the_textbook_in_float64(monkeypatch, scheme, mode):
    """Panels as narrow as the groups allow: every look back is exercised."""
    monkeypatch.setattr(loops, "PANEL", 1)
    weight, hessian = layer(3, 48, seed=scheme.bits, dead=(7,))
    options = gptq.Options(block_size=16, **mode)
    answer = textbook.solve(
        weight.numpy(),
        hessian.numpy(),
        scheme.bits,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
        ternary=scheme.levels == "ternary",
        mse=scheme.grid == "mse",
        act_order=options.act_order,
        static_groups=options.static_groups,
        stale_block=16 if options.group_grid == "stale" else None,
    )
    for kernel in ("reference", "auto"):
        solution = solve(weight, hessian, scheme, options, kernel=kernel)
        codes = torch.from_numpy(answer.codes).to(torch.uint8)
        assert torch.equal(solution.weight.codes, codes), kernel
        assert solution.loss == pytest.approx(answer.loss, rel=1e-9)


WIDE = pytest.mark.parametrize("scheme", [Scheme(4), Scheme(3, 128), Scheme(4, 32), Scheme(2, 256)])


def keeps_to_float64(scheme, kernel, device):
    """The tolerance of the oracle tests: 99.8 % of the codes and a loss within 0.1 %."""
    weight, hessian = layer(160, 512, seed=scheme.bits)
    exact = solve(weight, hessian, scheme, kernel="reference")
    single = (part.float().to(device) for part in (weight, hessian))
    found = solve(*single, scheme, kernel=kernel)
    codes = found.weight.codes.cpu()
    assert (codes == exact.weight.codes).float().mean() >= 0.998
    assert found.loss == pytest.approx(exact.loss, rel=1e-3)


@compiled
@WIDE
@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_wide_float32_layers_keep_to_float64(scheme, kernel):
    keeps_to_float64(scheme, kernel, "cpu")


@compiled
@WIDE
def test_so_they_do_without_onednn(scheme):
    with torch.backends.mkldnn.flags(enabled=False):
        keeps_to_float64(scheme, "cpu", "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@WIDE
@pytest.mark.parametrize("kernel", ["reference", "cuda"])
def test_wide_float32_layers_on_cuda_keep_to_float64(scheme, kernel):
    keeps_to_float64(scheme, kernel, "cuda")


@given(st.integers(1, 300), st.integers(1, 140), st.sampled_from([None, 4, 12, 50]), st.booleans())
def test_panels_hold_every_column_once_and_cut_no_group(columns, block_size, size, stale):
    assume(size is None or columns % size == 0)
    blocks = loops._blocks(columns, block_size, None if stale else size)
    panels = loops._panels(blocks, size)
    assert [block for panel in panels for block in panel] == blocks
    assert blocks[0][0] == 0
    assert blocks[-1][1] == columns
    for panel in panels[:-1]:
        assert panel[-1][1] - panel[0][0] >= min(loops.PANEL, columns)
        assert size is None or panel[-1][1] % size == 0


def singular(inputs=24):
    """A Hessian that damping 1e-9 leaves singular to float32."""
    column = torch.linspace(1, 2, inputs)
    return torch.outer(column, column)


def test_a_singular_hessian_fails_unless_a_ladder_is_allowed():
    weight = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    plain = gptq.Options(damping=1e-9)
    with pytest.raises(SingularHessianError, match=r"fc1: .*damping 1e-09 .*damping_ladder"):
        solve(weight, singular(), Scheme(4), plain, layer="fc1", tokens=100)
    for kernel in ("auto", "reference"):
        options = replace(plain, damping_ladder=(1e-8, 0.1, 1.0))
        solution = solve(weight, singular(), Scheme(4), options, "fc1", kernel=kernel)
        assert solution.fallback == "damping 0.1 instead of 1e-09"
        mean = float(singular().diagonal().mean())
        assert solution.damping == pytest.approx(0.1 * mean)
        asked = solve(weight, singular(), Scheme(4), gptq.Options(damping=0.1), kernel=kernel)
        assert asked.fallback is None
        assert torch.equal(solution.weight.codes, asked.weight.codes)


def test_a_ladder_that_does_not_help_names_every_step():
    indefinite = torch.diag(torch.tensor([1.0, -50.0, 1.0]))
    with pytest.raises(
        SingularHessianError, match=r"o_proj: .*damping 0.01, then 0.1, then 1 "
    ) as error:
        factorize(indefinite, layer="o_proj", ladder=(0.1, 1.0))
    assert "damping_ladder" not in str(error.value)


@pytest.mark.parametrize("ladder", [(0.01,), (0.1, 0.05), (float("nan"),), (float("inf"),)])
def test_ladders_that_do_not_rise_are_refused(ladder):
    with pytest.raises(ValueError, match=r"damping_ladder=.*does not rise from damping=0.01"):
        gptq.Options(damping_ladder=ladder)


def test_a_ladder_that_is_not_needed_changes_nothing():
    weight, hessian = layer(4, 24)
    plain, allowed = gptq.Options(), gptq.Options(damping_ladder=(0.1,))
    factor = gptq.prepare(hessian, allowed)
    assert (factor.used, factor.share) == (0.01, 0.01)
    found, expected = (solve(weight, hessian, Scheme(3), which) for which in (allowed, plain))
    assert torch.equal(found.weight.codes, expected.weight.codes)
    assert found.fallback is None


def test_a_kernel_that_is_not_there_is_refused():
    weight, hessian = layer(4, 24)
    with pytest.raises(ops.KernelUnavailable, match="kernel='cuda'"):
        solve(weight, hessian, Scheme(3), kernel="cuda")
