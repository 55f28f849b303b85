"""Q4_K, Q3_K and Q2_K as levels: against an oracle of single numbers, and gguf's dequantizer."""

import gguf
import numpy as np
import pytest
import torch

from quant.checkpoint.gguf.codes import read_codes
from quant.errors import SchemeError
from quant.hessian import Hessian
from quant.levels.base import load_levels
from quant.linear import unpack
from quant.measure.dummy import random_packed
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.solvers.base import Layer
from quant.solvers.gptq import Options
from tests.oracles import textbook_gptq as textbook
from tests.quant.solving import solve

KINDS = {"q4_k": (4, 32, 63), "q2_k": (2, 16, 15), "q3_k": (3, 16, 31)}
SCHEMES = {kind: Scheme(bits, group, levels=kind) for kind, (bits, group, _) in KINDS.items()}
BITS = {"q4_k": 4.5, "q3_k": 3.4375, "q2_k": 2.625}  # of llama.cpp's blocks


def half(value):
    return float(np.float16(np.float32(value)))


def oracle(kind):
    """The levels of every group of a super-block, each weight on its own."""
    bits, group, top = KINDS[kind]

    def affine(row):
        groups = [row[at : at + group] for at in range(0, len(row), group)]
        lows = [-min(0.0, *each) for each in groups]
        scales = [
            (max(0.0, *each) + low) / (2**bits - 1) for each, low in zip(groups, lows, strict=True)
        ]
        step, least = half(max(scales) / top), half(max(lows) / top)
        found = []
        for scale, low in zip(scales, lows, strict=True):
            number = step * min(max(round(scale / step), 1), top)
            offset = least * min(round(low / least), top)
            values = np.array([number * code - offset for code in range(2**bits)])
            found.append(textbook.Levels(values, number, offset, nearest=True))
        return found

    def signed(row):
        groups = [row[at : at + group] for at in range(0, len(row), group)]
        scales = [max(each, key=abs) / -4 for each in groups]
        most = max(scales, key=abs)
        step = half(most / -32)
        found = []
        for scale in scales:
            number = max(-32, min(31, round(scale / step))) or 1
            values = np.array([step * number * (code - 4) for code in range(8)])
            found.append(textbook.Levels(values, step * number, 0.0, nearest=True))
        return found

    return signed if kind == "q3_k" else affine


def layer(outputs=2, inputs=512, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(random(700, inputs) @ random(inputs, inputs) * random(inputs).exp())
    return random(outputs, inputs) * 0.1, hessian.matrix()


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_equals_the_oracle(kind):
    weight, _ = layer()
    found = rtn.solve(weight, SCHEMES[kind]).weight
    group = KINDS[kind][1]
    for row, made in zip(weight.tolist(), found.dequantize().tolist(), strict=True):
        levels = [each for at in (0, 256) for each in oracle(kind)(row[at : at + 256])]
        for at, (value, ours) in enumerate(zip(row, made, strict=True)):
            errors = np.abs(levels[at // group].values - value)
            assert abs(ours - value) == pytest.approx(errors.min(), abs=1e-7)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("q4_k", {}), ("q3_k", {"block_size": 100}), ("q2_k", {"act_order": True})],
    ids=str,
)
def test_gptq_equals_the_oracle(kind, mode):
    weight, hessian = layer(1, seed=1)
    options = Options(**mode)
    solution = solve(weight, hessian, SCHEMES[kind], options)
    answer = textbook.solve(
        weight.numpy(),
        hessian.numpy(),
        KINDS[kind][0],
        group_size=KINDS[kind][1],
        act_order=options.act_order,
        together=oracle(kind),
        span=256 // KINDS[kind][1],
    )
    found = solution.weight.dequantize().numpy()
    np.testing.assert_allclose(found, answer.values, rtol=2e-6, atol=1e-7)
    assert solution.loss == pytest.approx(answer.loss, rel=1e-9)


def test_the_compiled_loop_has_the_codes_of_the_plain_one():
    weight, hessian = (part.float() for part in layer(8, seed=2))
    plain = solve(weight, hessian, SCHEMES["q3_k"], kernel="reference")
    fused = solve(weight, hessian, SCHEMES["q3_k"])
    assert fused.fallback is None
    assert (plain.weight.codes == fused.weight.codes).float().mean() > 0.995


def words(numbers, bits):
    """Whole numbers of a dimension of 32 in planes of `bits`, the lowest first."""
    return sum(part << bits * at for at, part in enumerate(numbers.unbind(-2)))


def blocks_of(weight, kind):
    """The bytes of ggml-quants.c [super-blocks, bytes], by hand."""
    codes = weight.codes.view(-1, 256)
    grid = {name: part.reshape(len(codes), -1) for name, part in weight.grid.items()}
    step = grid["step"].view(torch.uint8)
    if kind == "q3_k":
        number = grid["scale"]
        low, high = number & 15, (number >> 4).view(-1, 4, 4)
        return torch.cat(
            [
                words((codes >> 2).view(-1, 8, 32), 1),
                words((codes & 3).view(-1, 2, 4, 32), 2).flatten(1),
                low[:, :8] | low[:, 8:] << 4,
                words(high, 2),
                step,
            ],
            1,
        )
    scale, least, steps = grid["scale"], grid["minimum"], [step]
    steps.append(grid["minimum_step"].view(torch.uint8))
    if kind == "q2_k":
        planes = words(codes.view(-1, 2, 4, 32), 2).flatten(1)
        return torch.cat([scale | least << 4, planes, *steps], 1)
    numbers = [
        (scale[:, :4] & 63) | scale[:, 4:] >> 4 << 6,
        (least[:, :4] & 63) | least[:, 4:] >> 4 << 6,
        (scale[:, 4:] & 15) | (least[:, 4:] & 15) << 4,
    ]
    nibbles = words(codes.view(-1, 4, 2, 32), 4).flatten(1)
    return torch.cat([*steps, *numbers, nibbles], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_gguf_for_the_same_bytes(kind):
    weight, hessian = (part.float() for part in layer(4, seed=3))
    weight[1, 256:] = 0
    weight[2, :32] = 0.03
    for solution in (rtn.solve(weight, SCHEMES[kind]), solve(weight, hessian, SCHEMES[kind])):
        made = solution.weight
        raw = blocks_of(made, kind).contiguous()
        theirs = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind.upper()])
        assert np.array_equal(theirs.reshape(4, 512), made.dequantize().numpy())
        assert 8 * raw.nbytes / weight.numel() == SCHEMES[kind].bits_per_weight(512) == BITS[kind]
        again = read_codes(kind.upper(), raw.view(4, -1), 512).dequantize()
        assert torch.equal(again, made.dequantize())
    assert not rtn.solve(weight, SCHEMES[kind]).weight.dequantize()[1, 256:].any()


def test_small_groups_beside_large_ones_keep_levels():
    """Their scales are less than half of a step of the super-block."""
    weight = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    weight[:, 32:64] *= 1e-3
    for scheme in SCHEMES.values():
        error = rtn.solve(weight, scheme).weight.dequantize() - weight
        bound = rtn.solve(weight, scheme).weight.grid["step"].float().abs().max() * 4
        assert float(error[:, 32:64].abs().max()) < bound


@pytest.mark.parametrize("kind", KINDS)
def test_widths_and_groups_that_cannot_be_are_refused(kind):
    scheme = SCHEMES[kind]
    message = rf"fc1 \(576 inputs\): {scheme.name} has super-blocks of 256 weights, which do not"
    with pytest.raises(SchemeError, match=message):
        rtn.solve(torch.zeros(2, 576), scheme, layer=Layer("fc1"))
    with pytest.raises(SchemeError, match=f"{kind} levels have groups of {scheme.group_size}"):
        Scheme(scheme.bits, 64, levels=kind)
    assert Scheme.parse(scheme.name) == scheme


@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_keep_the_size_of_an_input(kind):
    scheme = SCHEMES[kind]
    packed = random_packed(scheme, 512, 256, torch.Generator().manual_seed(0))
    values = unpack(packed, scheme, 512).dequantize()
    assert float(values.square().mean()) * 512 == pytest.approx(1, abs=0.1)
    assert load_levels(kind).version == 1
