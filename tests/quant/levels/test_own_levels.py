"""Levels of somebody else: one object, and solvers, packing and layers take them as they are."""

import itertools
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from cuda_ext.ops import resolve_kernel
from quant.errors import QuantizationError, SchemeError
from quant.hessian import Hessian
from quant.levels.base import GridTensor, Levels, built_in_levels, load_levels
from quant.linear import QuantLinear, pack, packed_bytes, packed_shapes, unpack
from quant.scales import round_scale
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.solvers.base import Layer
from quant.solvers.gptq import Options
from quant.weight import QuantizedWeight
from tests.oracles import textbook_gptq as textbook
from tests.quant.solving import solve

# The values of e2m1 (FP4) by their codes: a sign, two bits of exponent, one of fraction.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def find(weight, scheme, layer):
    """The largest magnitude of a row becomes 6."""
    return {"scale": round_scale(weight.abs().amax(dim=1) / 6, scheme, layer)}


def encode(values, grid, scheme):
    table = E2M1.to(values.device, values.dtype)
    return (values / grid["scale"])[..., None].sub(table).abs().argmin(-1).to(values.dtype)


def decode(codes, grid, scheme):
    return E2M1.to(codes.device, codes.dtype)[codes.long()] * grid["scale"]


def check(scheme):
    if scheme.group_size is None:
        raise SchemeError("fp4 levels have block scales: use group_size=16 or 32.")


FP4 = Levels(
    name="fp4",
    prefix="fp4",
    about="fp4 levels are the values of e2m1",
    tensors=(GridTensor("scale", "block_scales"),),
    find=find,
    encode=encode,
    decode=decode,
    bits=(4,),
    check=check,
)
SCHEME = Scheme(4, 16, levels=FP4)
SCHEMES = [SCHEME, Scheme(4, 20, levels=FP4), Scheme(4, 32, levels=FP4, scale_dtype="float32")]
MODES = [
    {},
    {"act_order": True},
    {"act_order": True, "static_groups": True},
    {"group_grid": "stale", "block_size": 24},
]


def own(dtype):
    """The oracle's levels of a row: sorted by hand from the definition of the format, not by E2M1.

    -0 is left out: the code of its sign is never the nearest to anything that 0 is not.
    """

    def levels(row):
        scale = textbook.as_stored(float(np.abs(row).max()) / 6, dtype)
        magnitudes = [2.0**e * (1 + m / 2) for e in (0, 1, 2) for m in (0, 1)]
        magnitudes = [0.0, 0.5, *magnitudes]
        values = [sign * scale * each for sign in (1, -1) for each in magnitudes]
        return textbook.Levels(np.array(values), scale, 0.0, nearest=True)

    return levels


def layer(outputs=5, inputs=48, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(random(200, inputs) @ random(inputs, inputs) * random(inputs).exp())
    return random(outputs, inputs) * 0.1, hessian.matrix()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_rounding_equals_the_oracle(scheme):
    weight, _ = layer()
    found = rtn.solve(weight, scheme).weight
    answer = textbook.solve(
        weight.numpy(),
        np.eye(48),
        4,
        group_size=scheme.group_size,
        static_groups=True,
        own=own(scheme.scale_dtype),
    )
    assert torch.equal(found.codes, torch.from_numpy(answer.codes).to(torch.uint8))
    assert torch.equal(found.grid["scale"].double(), torch.from_numpy(answer.scales))
    np.testing.assert_allclose(found.dequantize().numpy(), answer.values, rtol=2e-7)


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_gptq_equals_the_oracle(scheme, mode, kernel):
    options = Options(**{"block_size": 16, **mode})
    weight, hessian = layer(seed=scheme.group_size)
    solution = solve(weight, hessian, scheme, options, kernel=kernel)
    answer = textbook.solve(
        weight.numpy(),
        hessian.numpy(),
        4,
        group_size=scheme.group_size,
        act_order=options.act_order,
        static_groups=options.static_groups,
        stale_block=options.block_size if options.group_grid == "stale" else None,
        own=own(scheme.scale_dtype),
    )
    assert torch.equal(solution.weight.codes, torch.from_numpy(answer.codes).to(torch.uint8))
    assert torch.equal(solution.weight.grid["scale"].double(), torch.from_numpy(answer.scales))
    assert solution.weight.column_groups().tolist() == answer.group_of.tolist()
    np.testing.assert_allclose(solution.weight.dequantize().numpy(), answer.values, rtol=2e-7)
    assert solution.loss == pytest.approx(answer.loss, rel=1e-9)


def test_a_plain_loop_in_place_of_a_kernel_is_noted():
    weight, hessian = (part.float() for part in layer())
    if resolve_kernel("auto") != "reference":
        found = solve(weight, hessian, SCHEME)
        assert found.fallback == "plain column loop: the cpu kernel does not support fp4 levels"
        ladder = Options(damping=0, damping_ladder=(0.1,))
        singular = solve(weight, torch.ones(48, 48), SCHEME, ladder)
        assert singular.fallback.startswith("damping 0.1 instead of 0; plain column loop")
    plain = solve(weight, hessian, SCHEME, kernel="reference")
    assert plain.fallback is None
    assert solve(weight, hessian, Scheme(4, 16)).fallback is None


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_a_layer_holds_them_packed_and_multiplies_with_them(kernel, scattered):
    weight, hessian = layer(9, 40)
    solved = solve(weight, hessian, SCHEME, Options(act_order=scattered)).weight
    packed = pack(solved)
    assert ("g_idx" in packed) == scattered
    shapes = packed_shapes(SCHEME, 40, 9, g_idx=scattered)
    assert {name: tuple(part.shape) for name, part in packed.items()} == shapes
    assert shapes["block_scales"] == (3, 9)
    assert sum(part.nbytes for part in packed.values()) == packed_bytes(
        SCHEME, 40, 9, g_idx=scattered
    )
    assert torch.equal(unpack(packed, SCHEME, 40).dequantize(), solved.dequantize())

    made = QuantLinear.from_quantized(solved, torch.ones(9), kernel)
    assert not made.tiled
    assert made.way == ("reference" if made.kernel == "reference" else "cpu (dequantizes first)")
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
        expected = functional.linear(x.double(), solved.dequantize().double()) + 1
        assert made(x).dtype == dtype
        torch.testing.assert_close(made(x).double(), expected, rtol=tolerance, atol=tolerance)
    made.to(torch.bfloat16)
    assert made.block_scales.dtype == torch.float16
    other = QuantLinear.from_quantized(rtn.solve(weight, SCHEME).weight, torch.zeros(9), kernel)
    if not scattered:
        other.load_state_dict(made.state_dict())
        assert torch.equal(other.dequantize(), solved.dequantize())


def test_their_schemes_have_names_costs_and_checks():
    assert SCHEME.name == "fp4g16"
    assert SCHEME.max_code == 15
    assert SCHEME.bits_per_weight(64) == 5
    for scheme in (*SCHEMES, Scheme(4, 16, levels=FP4, scale_dtype="bfloat16")):
        assert Scheme.parse(scheme.name, [FP4]) == scheme
        assert pickle.loads(pickle.dumps(scheme)) == scheme
    with pytest.raises(SchemeError, match="'fp4g': g has no number"):
        Scheme.parse("fp4g", [FP4])
    with pytest.raises(SchemeError, match=r"'fp5' is not the name .* fp4, mxfp4, .*ternary, w4"):
        Scheme.parse("fp5", [FP4])
    with pytest.raises(SchemeError, match="fp4: fp4 levels have block scales"):
        Scheme.parse("fp4", [FP4])
    for wrong in ({"bits": 3}, {"bits": 4, "symmetric": True}, {"bits": 4, "grid": "mse"}):
        with pytest.raises(SchemeError, match="e2m1: use bits=4, symmetric=false and grid=minmax"):
            Scheme(group_size=16, levels=FP4, **wrong)


def test_levels_that_find_another_grid_than_they_declare_are_named():
    wrong = replace(FP4, tensors=(*FP4.tensors, GridTensor("zero", "block_zeros", code=True)))
    with pytest.raises(QuantizationError, match="fc1: levels=fp4 found a grid of scale, but decl"):
        rtn.solve(layer()[0], Scheme(4, 16, levels=wrong), layer=Layer("fc1"))


def test_a_prefix_that_makes_names_ambiguous_is_refused():
    for prefix, bits in (("FP4", (4,)), ("", (4,)), ("f p", (4,)), ("fp4", (3, 4)), ("fp4", None)):
        with pytest.raises(ValueError, match="cannot begin the name of a scheme"):
            replace(FP4, prefix=prefix, bits=bits)
    several = replace(FP4, prefix="nf", bits=(3, 4), check=None)
    assert Scheme(3, 64, levels=several).name == "nf3g64"
    assert Scheme.parse("nf3g64", [several]) == Scheme(3, 64, levels=several)
    with pytest.raises(SchemeError, match="5 is not a bit width; choose one of nf3, nf4"):
        Scheme.parse("nf5g64", [several])


def test_a_kind_is_not_called_as_one_of_ours():
    """An artifact says its levels by name: it would be read as ours without a word."""
    twice = replace(load_levels("uniform"), prefix="mw", decode=lambda *given: 2 * given[0])
    with pytest.raises(SchemeError, match="levels=uniform is the name of Bitsweep's own levels"):
        Scheme(4, 16, levels=twice)
    assert Scheme(4, 16, levels=load_levels("uniform")).name == Scheme(4, 16).name


def test_a_module_is_named_by_its_dots(tmp_path, monkeypatch):
    (tmp_path / "my_levels.py").write_text(
        "from dataclasses import replace\n"
        "from quant.levels.uniform import LEVELS as uniform\n"
        "LEVELS = replace(uniform, name='mine', prefix='mine')\n"
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").write_text("from my_levels import LEVELS\n")
    monkeypatch.syspath_prepend(tmp_path)
    scheme = Scheme(5, 16, levels="package.mine")
    assert scheme.name == "mine5g16"
    assert Scheme.parse("mine5g16", ["package.mine"]) == scheme
    weight, _ = layer()
    expected = rtn.solve(weight, Scheme(5, 16)).weight
    found = rtn.solve(weight, scheme).weight
    assert isinstance(found, QuantizedWeight)
    assert torch.equal(found.codes, expected.codes)


def test_built_in_levels_declare_what_they_find():
    for kind, scale_dtype in itertools.product(built_in_levels(), ("float16", "float32")):
        if scale_dtype != "float16" and not kind.scaled:
            continue
        size = {"mxfp4": 32, "q4_k": 32}.get(kind.name, 16)
        scheme = Scheme(
            (kind.bits or (4,))[0],
            size,
            levels=kind.name,
            grid=kind.grids[-1],
            scale_dtype=scale_dtype,
        )
        weight = rtn.solve(layer(inputs=256)[0], scheme).weight
        assert list(weight.grid) == [tensor.name for tensor in kind.tensors]
        packed = pack(weight)
        assert list(packed) == ["qweight", *(tensor.buffer for tensor in kind.tensors)]
    assert [kind.name for kind in built_in_levels()] == [
        "mxfp4",
        "nf4",
        "nvfp4",
        "q2_k",
        "q3_k",
        "q4_k",
        "ternary",
        "uniform",
    ]


def test_built_in_levels_are_imported_without_torch():
    code = (
        "import sys; from quant.levels.base import built_in_levels; built_in_levels(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
