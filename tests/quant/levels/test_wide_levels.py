"""Grids of two levels, types of their own and codebooks: a declaration, and no solver knows.

The oracle finds and rounds by hand, one number at a time, and shares no line with wide_levels.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from quant.errors import QuantizationError, SchemeError
from quant.hessian import Hessian
from quant.levels.base import GridTensor
from quant.linear import QuantLinear, pack, packed_bytes, packed_dtypes, packed_shapes, unpack
from quant.measure.dummy import random_packed
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.solvers.base import Layer
from quant.solvers.gptq import Options
from tests.oracles import textbook_gptq as textbook
from tests.quant.solving import solve
from tests.quant.wide_levels import (
    CODEBOOK,
    E2M1,
    NVFP4,
    Q4K,
    Q4K_OF_3,
    Q4K_OF_ROWS,
    SCALED_CODEBOOK,
)

# 44 inputs: 2 super-blocks of 3 groups of 6, then one whole group and a short one of 2.
INPUTS = 44
SCHEMES = [
    Scheme(4, 6, levels=Q4K_OF_3),
    Scheme(4, 6, levels=Q4K_OF_ROWS),
    Scheme(4, 4, levels=Q4K_OF_3, scale_dtype="float32"),
    Scheme(4, levels=Q4K),
    Scheme(4, 16, levels=NVFP4),
    Scheme(3, levels=CODEBOOK),
    Scheme(2, 12, levels=CODEBOOK, scale_dtype="float32"),
    Scheme(3, 10, levels=SCALED_CODEBOOK),
]
MODES = [
    {},
    {"block_size": 7},
    {"act_order": True},
    {"act_order": True, "static_groups": True},
    {"group_grid": "stale", "block_size": 10},
]


def name(scheme):
    return f"{scheme.name}-{scheme.kind.span}"


def stored(value, dtype):
    """To the nearest number of a type, without any rule for small ones."""
    return float({"float16": np.float16, "float32": np.float32}[dtype](np.float32(value)))


def q4k(row, scheme):
    size, dtype = scheme.group_size or len(row), scheme.scale_dtype
    groups = [row[at : at + size] for at in range(0, len(row), size)]
    lows = [-min(0.0, *group) for group in groups]
    scales = [(max(0.0, *group) + low) / 15 for group, low in zip(groups, lows, strict=True)]
    d, dmin = (max(textbook.as_stored(max(x) / 63, dtype), 2.0**-24) for x in (scales, lows))
    found = []
    for scale, low in zip(scales, lows, strict=True):
        step, offset = d * min(round(scale / d), 63), dmin * min(round(low / dmin), 63)
        values = np.array([step * code - offset for code in range(16)])
        found.append(textbook.Levels(values, step, offset, nearest=True))
    return found


# Every magnitude of e4m3 from 2^-6 on: a sign, four bits of exponent, three of fraction.
E4M3 = [2.0 ** (e - 7) * (1 + m / 8) for e in range(1, 16) for m in range(8)][:-1]


def nvfp4(row, scheme):
    scale = stored(max(map(abs, row)) / (6 * 448), "float32")
    found = []
    for at in range(0, len(row), scheme.group_size):
        share = max(map(abs, row[at : at + scheme.group_size])) / (6 * scale)
        block = min(E4M3, key=lambda each: abs(each - share))
        values = np.array([sign * each * block * scale for sign in (1, -1) for each in E2M1])
        found.append(textbook.Levels(values, block, scale, nearest=True))
    return found


def quantiles(row, count):
    return [np.quantile(row, (k + 0.5) / count) for k in range(count)]


def codebook(row, scheme):
    table = [stored(each, scheme.scale_dtype) for each in quantiles(row, 2**scheme.bits)]
    return [textbook.Levels(np.array(table), table[0], 0.0, nearest=True)]


def scaled(row, scheme):
    groups = [row[at : at + 10] for at in range(0, len(row), 10)]
    scales = [textbook.as_stored(max(map(abs, group)), "float16") for group in groups]
    shares = np.concatenate([group / scale for group, scale in zip(groups, scales, strict=True)])
    table = [round(127 * each) / 127 for each in quantiles(shares, 8)]
    return [textbook.Levels(np.array(table) * each, each, 0.0, nearest=True) for each in scales]


ORACLES = {"own_q4k": q4k, "own_nvfp4": nvfp4, "codebook": codebook, "scaled": scaled}


def layer(outputs=4, inputs=INPUTS, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(random(200, inputs) @ random(inputs, inputs) * random(inputs).exp())
    return random(outputs, inputs) * 0.1, hessian.matrix()


def oracle(weight, hessian, scheme, **options):
    return textbook.solve(
        weight.numpy(),
        hessian.numpy(),
        scheme.bits,
        group_size=scheme.group_size,
        together=lambda row: ORACLES[scheme.kind.name](row, scheme),
        span=scheme.kind.span or 10**6,
        **options,
    )


def agrees(found, answer):
    assert torch.equal(found.codes, torch.from_numpy(answer.codes).to(torch.uint8))
    np.testing.assert_allclose(found.dequantize().numpy(), answer.values, rtol=3e-7, atol=3e-8)
    assert found.column_groups().tolist() == answer.group_of.tolist()


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_rounding_equals_the_oracle(scheme):
    weight, _ = layer()
    found = rtn.solve(weight, scheme).weight
    agrees(found, oracle(weight, torch.eye(INPUTS), scheme, static_groups=True, damping=0))
    again = rtn.solve(weight.float(), scheme).weight
    assert (again.codes == found.codes).float().mean() > 0.98, "in float32 as well"


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_gptq_equals_the_oracle(scheme, mode, kernel):
    options = Options(**{"block_size": 16, **mode})
    weight, hessian = layer(seed=scheme.bits)
    solution = solve(weight, hessian, scheme, options, kernel=kernel)
    stale = options.block_size if options.group_grid == "stale" else None
    answer = oracle(
        weight,
        hessian,
        scheme,
        act_order=options.act_order,
        static_groups=options.static_groups,
        stale_block=stale,
    )
    agrees(solution.weight, answer)
    assert solution.loss == pytest.approx(answer.loss, rel=1e-9)


def test_panels_cut_no_super_block(monkeypatch):
    weight, hessian = layer()
    scheme = SCHEMES[0]
    expected = solve(weight, hessian, scheme, Options(block_size=9), kernel="reference")
    monkeypatch.setattr("quant.solvers.columns.PANEL", 8)
    found = solve(weight, hessian, scheme, Options(block_size=9))
    assert torch.equal(found.weight.codes, expected.weight.codes)


SHAPES = {
    "own_q4k": {"scales": (8, 2), "minima": (8, 2), "steps": (3, 9), "minimum_steps": (3, 9)},
    "own_nvfp4": {"block_scales": (3, 9), "row_scales": (1, 9)},
    "codebook": {"tables": (1, 9, 8)},
    "scaled": {"tables": (1, 18), "scales": (5, 9)},
}


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("scheme", [SCHEMES[at] for at in (0, 4, 5, 7)], ids=name)
def test_a_layer_holds_them_packed_and_multiplies_with_them(scheme, scattered):
    weight, hessian = layer(9)
    solved = solve(weight, hessian, scheme, Options(act_order=scattered)).weight
    packed = pack(solved)
    scattered = scattered and scheme.group_size is not None
    shapes = packed_shapes(scheme, INPUTS, 9, g_idx=scattered)
    assert {name: tuple(part.shape) for name, part in packed.items()} == shapes
    assert {name: shapes[name] for name in SHAPES[scheme.kind.name]} == SHAPES[scheme.kind.name]
    dtypes = packed_dtypes(scheme)
    assert {name: part.dtype for name, part in packed.items()} == {n: dtypes[n] for n in packed}
    held = packed_bytes(scheme, INPUTS, 9, g_idx=scattered)
    assert sum(part.nbytes for part in packed.values()) == held
    again = unpack(packed, scheme, INPUTS)
    assert torch.equal(again.codes, solved.codes)
    for key, part in solved.grid.items():
        assert part.dtype == again.grid[key].dtype
        assert torch.equal(again.grid[key].float(), part.float())

    made = QuantLinear.from_quantized(solved, torch.ones(9))
    x = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = functional.linear(x, solved.dequantize().double()) + 1
    torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
    made.to(torch.bfloat16)
    assert torch.equal(made.dequantize(), solved.dequantize()), "numbers keep their types"
    other = QuantLinear(
        {key: torch.zeros_like(part) for key, part in packed.items()}, scheme, INPUTS, None, "auto"
    )
    state = {key: part for key, part in made.state_dict().items() if key != "bias"}
    other.load_state_dict(state)
    assert torch.equal(other.dequantize(), solved.dequantize())


def test_codebooks_are_decoded_some_rows_at_a_time(monkeypatch):
    solved = rtn.solve(layer(9)[0], SCHEMES[6]).weight
    expected = solved.dequantize()
    monkeypatch.setattr("quant.weight.MOST_AT_ONCE", 4 * INPUTS * 2)
    assert torch.equal(solved.dequantize(), expected)


def test_their_costs():
    assert Scheme(4, 32, levels=Q4K).bits_per_weight(4096) == 4.5  # as llama.cpp counts them
    assert Scheme(4, 16, levels=NVFP4).bits_per_weight(4096) == 4.5 + 32 / 4096
    # SqueezeLLM's: 16 float16 numbers a row
    assert Scheme(4, levels=CODEBOOK).bits_per_weight(4096) == 4 + 16 * 16 / 4096
    # 9 groups of 32: a second super-block of one group
    assert Scheme(4, 32, levels=Q4K).overhead(288) == 9 * 12 + 2 * 32
    assert Scheme(4, 32, levels=Q4K).name == "q4k_g32"
    assert Scheme.parse("cb3g64", [CODEBOOK]) == Scheme(3, 64, levels=CODEBOOK)


def test_a_type_that_nothing_is_stored_in_is_refused():
    with pytest.raises(SchemeError, match="scale_dtype=bfloat16 has no effect, because own_nvfp4"):
        Scheme(4, 16, levels=NVFP4, scale_dtype="bfloat16")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"width": 6}, "grid tensor scale: width is for code=True"),
        ({"code": True, "dtype": "float32"}, "dtype for code=False"),
        ({"code": True, "width": 9}, "width=9 is not one of"),
        ({"dtype": "float64"}, "dtype='float64' is not one of"),
        ({"span": 0}, "span=0 is below 1"),
        ({"values": 0}, "values=0 is below 1"),
        ({"buffer": "qweight"}, "the name qweight is reserved"),
        ({"buffer": "a.scale"}, "buffer='a.scale' is not a tensor name"),
    ],
)
def test_declarations_that_cannot_be_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        GridTensor(**{"name": "scale", "buffer": "scales", **wrong})


def test_no_buffer_is_called_as_something_else_of_a_layer():
    """It could be written, and no layer could be made of it."""
    packed = QuantLinear.from_quantized(rtn.solve(layer()[0], Scheme(4, 16)).weight)
    own = set(dir(packed)) - set(dir(nn.Module())) - {"scales", "qzeros"}
    own = {name for name in own if not name.startswith("_")}
    assert {"scheme", "kernel", "bias"} <= own
    for name in own:
        with pytest.raises(ValueError, match=f"the name {name} is reserved"):
            GridTensor("scale", name)


@pytest.mark.parametrize("field", ["name", "buffer"])
def test_tensors_of_a_grid_have_names_of_their_own(field):
    """One would be stored in the place of the other, and both be read back as it."""
    first, second, *rest = Q4K.tensors
    with pytest.raises(ValueError, match=f"q4k: the tensors of a grid have the {field}s"):
        replace(Q4K, tensors=(first, replace(second, **{field: getattr(first, field)}), *rest))
    with pytest.raises(ValueError, match="q4k: the tensors of a grid have the names of nothing"):
        replace(Q4K, tensors=())


def test_operators_know_none_of_this():
    with pytest.raises(ValueError, match="nvfp4: the operators of cuda_ext support one number"):
        replace(NVFP4, operators=True)


def test_a_find_that_breaks_its_declaration_is_named():
    weight, _ = layer()
    flat = replace(Q4K, find=lambda *given: {k: v[:, 0] for k, v in Q4K.find(*given).items()})
    with pytest.raises(
        QuantizationError,
        match=r"fc1: levels=own_q4k found a scale of shape \[4\] for 4 rows and 8",
    ):
        rtn.solve(weight, Scheme(4, 6, levels=flat), layer=Layer("fc1"))
    rough = replace(CODEBOOK, find=lambda weight, scheme, layer: {"table": weight[:, :8].clone()})
    with pytest.raises(
        QuantizationError, match="found a table that float16 does not represent exactly"
    ):
        rtn.solve(weight, Scheme(3, levels=rough))


def test_random_weights_of_them():
    def draw(words, shape, inputs, scheme, generator):
        scale = torch.rand(shape, generator=generator) + 0.5
        return {"scale": scale.to(torch.float8_e4m3fn), "row_scale": scale / math.sqrt(inputs)}

    scheme = Scheme(4, 16, levels=replace(NVFP4, draw=draw))
    packed = random_packed(scheme, INPUTS, 9, torch.Generator().manual_seed(0))
    assert packed["row_scales"].shape == (1, 9)
    assert unpack(packed, scheme, INPUTS).dequantize().shape == (9, INPUTS)
