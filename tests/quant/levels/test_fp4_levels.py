"""NVFP4 and MXFP4 as levels of any solver: against a textbook and the libraries' own quantizers."""

import math

import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from quant.errors import SchemeError
from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.solvers.base import Layer
from quant.solvers.gptq import Options
from tests.oracles import textbook_fp4
from tests.oracles import textbook_gptq as textbook
from tests.quant.checkpoint.fp4_folders import configuration
from tests.quant.checkpoint.test_fp4 import read_layer
from tests.quant.solving import solve

RULES = ("floor", "even", "rceil")
NVFP4 = Scheme(4, 16, levels="nvfp4")
MXFP4 = {rule: Scheme(4, 32, levels="mxfp4", grid=rule) for rule in RULES}
SCHEMES = [NVFP4, *MXFP4.values()]


def name(scheme):
    return scheme.name


# The oracle: rules by their definitions, on single float64 numbers.


def power_of(largest: float, rule: str) -> float:
    """The power of two that a group with this largest magnitude is scaled by."""
    if rule == "rceil":  # the least that 6 times reaches the largest
        power = 2.0**-120
        while 6 * power < largest:
            power *= 2
        return power
    halves = 2 * largest / 2.0 ** math.floor(math.log2(largest))  # 2 to 4: two bits of mantissa
    if rule == "even":
        # Rounded to two bits of mantissa, as a level would be: 3.5 and more become 4.
        halves = float(np.rint(halves))
    return 2.0 ** math.floor(math.log2(largest)) * (2 if halves >= 4 else 1) / 4


def e2m1_levels(scale: float) -> textbook.Levels:
    magnitudes = sorted({abs(textbook_fp4.e2m1(code)) for code in range(16)})
    table = [*(-each for each in reversed(magnitudes)), *magnitudes]  # by rank
    return textbook.Levels(np.array(table) * scale, scale, 0.0, nearest=True)


def mxfp4_rows(rule):
    def together(row):
        groups = [row[at : at + 32] for at in range(0, len(row), 32)]
        return [e2m1_levels(power_of(max(map(abs, group)), rule)) for group in groups]

    return together


def layer(outputs=5, inputs=96, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(random(300, inputs) @ random(inputs, inputs) * random(inputs).exp())
    return random(outputs, inputs) * 0.1, hessian.matrix()


@pytest.mark.parametrize("rule", RULES)
def test_exponents_are_rounded_by_the_rule(rule):
    """At 1.5, 1.75 and 2 times a power of two, and next to them, in several octaves."""
    scheme = MXFP4[rule]
    shares = [1, 1.25, *(at + off for at in (1.5, 1.75, 2) for off in (-1e-6, 0, 1e-6)), 1.9]
    for octave in (-90, -8, 0, 11):
        for share in shares:
            weight = torch.zeros(1, 32)
            weight[0, 7] = -share * 2.0**octave
            found = rtn.solve(weight, scheme).weight.grid["exponent"]
            expected = power_of(float(weight.abs().max()), rule)
            assert 2.0 ** (int(found) - 127) == expected, (rule, share, octave)
    assert not rtn.solve(torch.zeros(2, 32), scheme).weight.dequantize().any()


def test_rules_differ_where_the_libraries_do():
    steps = {rule: [] for rule in RULES}
    for rule, found in steps.items():
        for share in (1.5, 1.51, 1.74, 1.75, 1.99, 2.0):
            weight = torch.zeros(1, 32)
            weight[0, 0] = share
            found.append(int(rtn.solve(weight, MXFP4[rule]).weight.grid["exponent"]) - 125)
    assert steps == {
        "floor": [0, 0, 0, 0, 0, 1],
        "even": [0, 0, 0, 1, 1, 1],
        "rceil": [0, 1, 1, 1, 1, 1],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", [NVFP4, MXFP4["even"]], ids=name)
def test_codes_are_those_of_compressed_tensors(scheme, dtype):
    """Ties included, which numbers of bfloat16 have often."""
    kind = scheme.kind.name
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0)).to(dtype).float() / 8
    said = QuantizationScheme(**configuration(kind)["config_groups"]["group_0"])
    whole = generate_gparam(weight.min(), weight.max()) if kind == "nvfp4" else None
    groups = weight.unflatten(1, (-1, scheme.group_size))
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), said.weights, whole)
    state = {"weight": weight, "weight_scale": scale}
    state |= {} if whole is None else {"weight_global_scale": whole}
    library = BaseCompressor.get_value_from_registry(f"{kind}-pack-quantized")
    theirs = read_layer(library.compress(state, said), configuration(kind))
    ours = rtn.solve(weight, scheme).weight
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.dequantize(), theirs.dequantize())
    for each, part in ours.grid.items():
        assert torch.equal(part.float(), theirs.grid[each].float())


def of_gguf(weight):
    kind = gguf.GGMLQuantizationType.MXFP4
    return torch.from_numpy(
        gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    )


def test_values_are_those_of_gguf_except_at_ties():
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0)) / 8
    ours = rtn.solve(weight, MXFP4["floor"]).weight.dequantize()
    assert torch.equal(ours, of_gguf(weight))
    ties = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, *[0.0] * 24]])
    ties = torch.cat([ties, -ties])
    even = torch.tensor([0, 1, 1, 2, 2, 4, 4, 6])
    found = rtn.solve(ties, MXFP4["floor"]).weight.dequantize()[:, :8]
    assert torch.equal(found, torch.stack([even, -even]).float())
    assert of_gguf(ties)[0, :8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6], "gguf goes towards 0"


@pytest.mark.parametrize(
    "mode",
    [{}, {"act_order": True}, {"act_order": True, "static_groups": True}, {"block_size": 40}],
    ids=str,
)
@pytest.mark.parametrize("rule", RULES)
def test_gptq_equals_the_oracle(rule, mode):
    options = Options(**{"block_size": 64, **mode})
    weight, hessian = layer(seed=1)
    solution = solve(weight, hessian, MXFP4[rule], options)
    answer = textbook.solve(
        weight.numpy(),
        hessian.numpy(),
        4,
        group_size=32,
        act_order=options.act_order,
        static_groups=options.static_groups,
        together=mxfp4_rows(rule),
        span=1,
    )
    np.testing.assert_allclose(solution.weight.dequantize().numpy(), answer.values, rtol=1e-6)
    assert solution.loss == pytest.approx(answer.loss, rel=1e-9)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_on_nvfp4_equals_the_oracle(act_order):
    """Scales of the whole layer come first, from the weights as they are."""
    weight, hessian = layer(seed=2)
    whole = float(np.float32(6 * 448) / np.float32(weight.abs().max()))
    magnitudes = np.array([textbook_fp4.e4m3(byte) for byte in range(127)])

    def together(row):
        found = []
        for at in range(0, len(row), 16):
            exact = max(map(abs, row[at : at + 16])) / 6 * whole
            stored = magnitudes[np.abs(magnitudes - exact).argmin()]
            found.append(e2m1_levels(float(np.float32(stored / whole))))
        return found

    solution = solve(weight, hessian, NVFP4, Options(act_order=act_order))
    answer = textbook.solve(
        weight.numpy(),
        hessian.numpy(),
        4,
        group_size=16,
        act_order=act_order,
        together=together,
        span=10**6,
    )
    np.testing.assert_allclose(solution.weight.dequantize().numpy(), answer.values, rtol=1e-6)
    assert solution.loss == pytest.approx(answer.loss, rel=1e-6)


def test_gptq_has_less_error_than_rounding():
    weight, hessian = (part.float() for part in layer(16, 128, seed=3))
    for scheme in SCHEMES:
        found = [
            made.weight.dequantize() - weight
            for made in (rtn.solve(weight, scheme), solve(weight, hessian, scheme))
        ]
        rounding, gptq = (float((each @ hessian * each).sum()) for each in found)
        assert gptq < 0.8 * rounding


def test_names_sizes_and_what_is_refused():
    assert [each.name for each in SCHEMES] == [
        "nvfp4g16",
        "mxfp4g32_floor",
        "mxfp4g32_even",
        "mxfp4g32_rceil",
    ]
    for scheme in SCHEMES:
        assert Scheme.parse(scheme.name) == scheme
    assert NVFP4.bits_per_weight(4096) == 4.5 + 32 / 4096
    assert MXFP4["even"].bits_per_weight(4096) == 4.25
    with pytest.raises(SchemeError, match=r"mxfp4g16: mxfp4 .* its name with mxfp4g32_floor"):
        Scheme.parse("mxfp4g16")
    read = Scheme.parse("mxfp4g32")
    assert read.refusal(32) is not None
    message = r"fc1 \(32 inputs\): mxfp4g32 does not say how .*: use grid=floor .*even or rceil\."
    with pytest.raises(SchemeError, match=message):
        rtn.solve(torch.zeros(2, 32), read, layer=Layer("fc1"))
