"""GPTQ against the textbook oracle, its invariances, and what it refuses."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import (
    CalibrationError,
    NonFiniteError,
    QuantizationError,
    SingularHessianError,
)
from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer
from tests.oracles import textbook_gptq as textbook
from tests.quant.solving import solve

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "gptq_codes.json"

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        *(Scheme(bits) for bits in (2, 3, 4, 8)),
        Scheme(4, symmetric=True),
        Scheme(3, grid="mse"),
        Scheme(2, levels="ternary"),
        Scheme(3, 8),
        Scheme(4, 16, symmetric=True),
        Scheme(3, 12),  # straddles the blocks of 16 below
        Scheme(3, 24),  # longer than a block, begins inside one
        Scheme(2, 48, grid="mse", scale_dtype="float32"),
        Scheme(4, 6, grid="mse"),
        Scheme(2, 8, levels="ternary"),
    )
}
OPTIONS = {
    "natural": gptq.Options(),
    "damped": gptq.Options(damping=0.3),
    "act_order": gptq.Options(act_order=True),
    "static": gptq.Options(static_groups=True),
    "act_order_static": gptq.Options(act_order=True, static_groups=True),
    "stale": gptq.Options(group_grid="stale"),
    "act_order_stale": gptq.Options(act_order=True, group_grid="stale"),
}


def layer(outputs, inputs, seed=0, tokens=None, dead=()):
    """Weight [out, in] and Hessian [in, in], float64, of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixed = random(tokens or 4 * inputs, inputs) @ (random(inputs, inputs) / inputs**0.5)
    activations = mixed * random(inputs).exp() + random(inputs)
    activations[:, list(dead)] = 0
    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(activations)
    return random(outputs, inputs) * 0.1, hessian.matrix()


def oracle(weight, hessian, scheme, options):
    return textbook.solve(
        weight.double().numpy(),
        hessian.double().numpy(),
        scheme.bits,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
        ternary=scheme.levels == "ternary",
        mse=scheme.grid == "mse",
        dtype=scheme.scale_dtype,
        damping=options.damping,
        act_order=options.act_order,
        static_groups=options.static_groups,
        stale_block=options.block_size if options.group_grid == "stale" else None,
    )


def quadratic_loss(weight, hessian, quantized):
    difference = weight - quantized.dequantize().to(weight.dtype)
    return float(((difference @ hessian) * difference).sum()) / 2


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_float64_codes_equal_the_oracle(scheme, options):
    options = replace(options, block_size=16)
    weight, hessian = layer(5, 48, seed=scheme.bits, dead=(7, 30))
    kept = weight.clone(), hessian.clone()
    solution = solve(weight, hessian, scheme, options)
    answer = oracle(weight, hessian, scheme, options)
    quantized = solution.weight
    assert torch.equal(quantized.codes, torch.from_numpy(answer.codes).to(torch.uint8))
    assert quantized.codes.is_contiguous()
    assert torch.equal(quantized.scale.double(), torch.from_numpy(answer.scales))
    assert quantized.column_groups().tolist() == answer.group_of.tolist()
    values = torch.from_numpy(answer.values)
    torch.testing.assert_close(quantized.dequantize().double(), values, rtol=2e-7, atol=0)
    assert solution.loss == pytest.approx(answer.loss, rel=1e-9)
    assert solution.dead_columns == 2
    assert not quantized.dequantize()[:, [7, 30]].any()
    assert torch.equal(weight, kept[0])
    assert torch.equal(hessian, kept[1])


def test_the_options_of_group_grids_differ_where_they_should():
    weight, hessian = layer(16, 48)
    codes = {
        name: solve(weight, hessian, Scheme(3, 8), replace(options, block_size=16)).weight
        for name, options in OPTIONS.items()
    }
    names = list(OPTIONS)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not torch.equal(codes[first].codes, codes[second].codes), (first, second)
    moving = {name for name, weight in codes.items() if weight.group_index is not None}
    assert moving == {"act_order", "act_order_stale"}
    index = codes["act_order"].group_index
    assert index.dtype == torch.int32
    assert index.bincount().tolist() == [8] * 6


@pytest.mark.parametrize("size", [16, 32, 48])
def test_stale_grids_are_up_to_date_when_groups_begin_with_a_block(size):
    weight, hessian = layer(8, 96)
    current = solve(weight, hessian, Scheme(3, size), gptq.Options(block_size=16))
    stale = solve(weight, hessian, Scheme(3, size), gptq.Options(block_size=16, group_grid="stale"))
    assert torch.equal(current.weight.codes, stale.weight.codes)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(SCHEMES.values())),
    st.sampled_from([name for name in OPTIONS if "stale" not in name]),
    st.integers(1, 60),
    st.integers(0, 1000),
)
def test_the_block_size_changes_nothing(scheme, name, block_size, seed):
    weight, hessian = layer(4, 48, seed)
    whole = solve(weight, hessian, scheme, replace(OPTIONS[name], block_size=48))
    lazy = solve(weight, hessian, scheme, replace(OPTIONS[name], block_size=block_size))
    assert torch.equal(whole.weight.codes, lazy.weight.codes)
    assert whole.loss == pytest.approx(lazy.loss, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(SCHEMES.values())), st.sampled_from(list(OPTIONS)), st.integers(0, 99))
def test_independent_inputs_of_one_size_make_it_rtn(scheme, name, seed):
    weight, _ = layer(4, 48, seed)
    solution = solve(weight, 3 * torch.eye(48), scheme, OPTIONS[name])
    expected = rtn.solve(weight, scheme).weight
    assert torch.equal(solution.weight.codes, expected.codes)
    assert torch.equal(solution.weight.dequantize(), expected.dequantize())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([Scheme(3), Scheme(4, 8), Scheme(2, 24, grid="mse")]))
def test_under_act_order_the_order_of_columns_does_not_matter(seed, scheme):
    weight, hessian = layer(4, 48, seed)
    shuffle = torch.randperm(48, generator=torch.Generator().manual_seed(seed))
    options = gptq.Options(act_order=True, block_size=16)
    plain = solve(weight, hessian, scheme, options)
    moved = solve(weight[:, shuffle], hessian[shuffle][:, shuffle], scheme, options)
    assert torch.equal(plain.weight.codes[:, shuffle], moved.weight.codes)
    assert torch.equal(plain.weight.dequantize()[:, shuffle], moved.weight.dequantize())


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_it_beats_rtn_on_correlated_inputs(scheme):
    ratios = []
    for seed in range(12):
        weight, hessian = layer(16, 48, seed)
        solved = quadratic_loss(weight, hessian, solve(weight, hessian, scheme).weight)
        rounded = quadratic_loss(weight, hessian, rtn.solve(weight, scheme).weight)
        ratios.append(solved / rounded)
    assert sum(ratio < 1 for ratio in ratios) >= 10
    assert sum(ratios) / 12 < 0.8


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(SCHEMES.values())), st.sampled_from(list(OPTIONS)), st.integers(0, 999))
def test_codes_are_in_range_and_the_loss_is_the_damped_quadratic_form(scheme, name, seed):
    weight, hessian = layer(4, 48, seed)
    solution = solve(weight, hessian, scheme, OPTIONS[name])
    assert int(solution.weight.codes.max()) <= scheme.max_code
    mean = float(hessian.diagonal().mean())
    assert solution.damping == pytest.approx(OPTIONS[name].damping * mean)
    damped = hessian + solution.damping * torch.eye(48)
    expected = quadratic_loss(weight, damped, solution.weight)
    assert solution.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["natural", "act_order_static"])
def test_one_group_of_all_columns_is_one_grid_a_row(name):
    weight, hessian = layer(4, 48)
    rows = solve(weight, hessian, Scheme(3), OPTIONS[name])
    group = solve(weight, hessian, Scheme(3, 48), OPTIONS[name])
    assert torch.equal(rows.weight.codes, group.weight.codes)
    assert group.weight.group_index is None


def test_rows_do_not_see_each_other():
    weight, hessian = layer(6, 48)
    together = solve(weight, hessian, Scheme(3, 8)).weight
    alone = solve(weight[2:3], hessian, Scheme(3, 8)).weight
    assert torch.equal(together.codes[2:3], alone.codes)


@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_a_layer_without_any_live_input_is_refused(size):
    """All its weights would become 0, without a word; also when the squares underflow."""
    weight, _ = layer(3, 16)
    inputs = Hessian(16, "proj")
    inputs.update(torch.full((40, 16), size))
    for scheme in (Scheme(4), Scheme(2, 8, levels="ternary")):
        with pytest.raises(CalibrationError, match=r"layer: every input is 0.*use method=rtn"):
            solve(weight, inputs.matrix(), scheme)


def test_layers_with_the_same_inputs_can_share_a_factor():
    options = gptq.Options(act_order=True, damping=0.05)
    first, hessian = layer(4, 48)
    second, _ = layer(7, 48, seed=9)
    factor = gptq.prepare(hessian, options)
    for weight in (first, second):
        shared = solve(weight, factor, Scheme(3, 8), options)
        own = solve(weight, hessian, Scheme(3, 8), options)
        assert torch.equal(shared.weight.codes, own.weight.codes)
        assert (shared.loss, shared.damping) == (own.loss, own.damping)
    with pytest.raises(ValueError, match=r"q_proj: the factor was made with damping=0.05"):
        solve(first, factor, Scheme(3, 8), replace(options, damping=0.01), "q_proj")
    with pytest.raises(ValueError, match=r"act_order=True.*prepare"):
        solve(first, factor, Scheme(3, 8), replace(options, act_order=False), "q_proj")


def test_half_precision_weights_are_solved_in_float32():
    weight, hessian = layer(4, 48)
    half, hessian = weight.half(), hessian.float()
    solved = solve(half, hessian, Scheme(4)).weight
    assert torch.equal(solved.codes, solve(half.float(), hessian, Scheme(4)).weight.codes)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"damping": -0.1}, "damping=-0.1.*0.01"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"block_size": 0}, "block_size=0.*128"),
        ({"group_grid": "old"}, "group_grid='old'.*current, stale"),
        ({"static_groups": True, "group_grid": "stale"}, "static_groups=true.*current"),
    ],
)
def test_impossible_options_say_the_way_out(fields, words):
    with pytest.raises(ValueError, match=words):
        gptq.Options(**fields)


def test_bad_input_names_the_layer_and_what_to_do():
    weight, hessian = layer(4, 48)
    broken = weight.clone()
    broken[1, 2] = float("inf")
    with pytest.raises(NonFiniteError, match=r"fc1: 1 of 192 weights.*row 1, column 2"):
        solve(broken, hessian, Scheme(4), layer="fc1")
    broken = hessian.clone()
    broken[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="fc1: 1 of 2304 entries of the Hessian"):
        solve(weight, broken, Scheme(4), layer="fc1")
    with pytest.raises(ValueError, match="fc1: the Hessian is for 24 inputs, the weight has 48"):
        solve(weight, hessian[:24, :24], Scheme(4), layer="fc1")
    with pytest.raises(QuantizationError, match=r"fc1: .*bfloat16"):
        solve(weight * 1e7, hessian, Scheme(4), layer="fc1")
    huge, scheme = weight.float() * 1e30, Scheme(2, scale_dtype="float32")
    with pytest.raises(NonFiniteError, match=r"fc1: the loss of GPTQ is inf.*raise damping"):
        solve(huge, hessian.float(), scheme, layer="fc1")
    few = layer(4, 48, tokens=10)[1]
    with pytest.raises(SingularHessianError, match=r"fc1.*10 calibration tokens.*raise damping"):
        solve(weight, few, Scheme(4), gptq.Options(damping=0), "fc1", tokens=10)
    assert solve(weight, few, Scheme(4), layer="fc1", tokens=10).loss > 0


def golden_case():
    """A layer made of small integers: the same numbers on any machine."""
    outputs, inputs, tokens = 12, 64, 160

    def integers(rows, columns, a, b, modulus):
        i = torch.arange(rows).unsqueeze(1)
        j = torch.arange(columns).unsqueeze(0)
        return (i * i * a + j * j * b + i * j * 31 + 17 * i) % modulus - modulus // 2

    activations = integers(tokens, inputs, 7919, 10473, 1009).double() / 64
    activations[:, 1:] += activations[:, :-1]  # correlated
    activations[:, 5] = 0
    hessian = 2 * activations.T @ activations
    return integers(outputs, inputs, 10007, 4999, 2003).double() / 8192, hessian


def test_golden_codes():
    """Codes of a fixed case in float64; all equalled the oracle's when the file was made."""
    weight, hessian = golden_case()
    found = {}
    for scheme_name in ("w4", "w3", "w2", "w8", "w4g16_sym", "w3g8", "w3_mse", "ternary_g8"):
        for option_name, options in OPTIONS.items():
            options = replace(options, block_size=32)
            solution = solve(weight, hessian, SCHEMES[scheme_name], options)
            digest = hashlib.sha256(solution.weight.codes.numpy().tobytes()).hexdigest()
            found[f"{scheme_name} {option_name}"] = [digest[:16], float(f"{solution.loss:.9g}")]
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert found.keys() == golden.keys()
    for case, (digest, loss) in golden.items():
        assert found[case][0] == digest, case
        assert found[case][1] == pytest.approx(loss, rel=1e-7), case


@pytest.fixture(scope="module")
def real_layers(shared):
    """Name -> (weight, Hessian, tokens) of a trained LLaMA on 24 stories, in float32."""
    transformers = pytest.importorskip("transformers")
    folder = shared / "models" / "tinystories-656k"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = (shared / "data/tinystories-valid/tinystories_valid_1M.txt").read_text("utf-8")
    hessians = {}
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            hessians[name] = Hessian(module.in_features, name)
            module.register_forward_hook(
                lambda _, inputs, __, name=name: hessians[name].update(inputs[0])
            )
    with torch.no_grad():
        for story in text.split("<|endoftext|>")[300:324]:
            model(tokenizer(story.strip(), return_tensors="pt").input_ids[:, :512])
    return {
        name: (
            model.model.layers.get_submodule(name).weight.detach(),
            hessian.matrix(),
            hessian.tokens,
        )
        for name, hessian in hessians.items()
    }


NARROW = ("0.self_attn.k_proj", "1.self_attn.o_proj")
# 384 inputs: a second for the oracle, which inverts a matrix for each. Half of them are a problem
# of their own.
WIDE, HALF = ("0.mlp.down_proj",), ("0.mlp.down_proj:192",)
REAL = [
    (Scheme(4), "natural", NARROW + WIDE),
    (Scheme(3), "act_order", NARROW),
    (Scheme(2), "natural", NARROW),
    (Scheme(8), "natural", NARROW),
    (Scheme(3, 32), "natural", NARROW),
    (Scheme(3, 96), "stale", HALF),
    (Scheme(4, 32, symmetric=True), "act_order", HALF),
    (Scheme(2, 64, grid="mse"), "act_order_static", NARROW[:1]),
    (Scheme(2, 8, levels="ternary"), "natural", NARROW),
]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("scheme", "name", "names"), REAL, ids=[f"{case[0].name}-{case[1]}" for case in REAL]
)
def test_real_layers_equal_the_oracle(real_layers, scheme, name, names):
    options = OPTIONS[name]
    same = total = 0
    loss = expected_loss = 0.0
    for layer_and_inputs in names:
        layer_name, _, inputs = layer_and_inputs.partition(":")
        weight, hessian, tokens = real_layers[layer_name]
        count = int(inputs or weight.shape[1])
        weight, hessian = weight[:, :count], hessian[:count, :count]
        answer = oracle(weight, hessian, scheme, options)
        codes = torch.from_numpy(answer.codes).to(torch.uint8)
        double = solve(weight.double(), hessian.double(), scheme, options, layer_name, tokens)
        assert torch.equal(double.weight.codes, codes), layer_name
        assert double.loss == pytest.approx(answer.loss, rel=1e-9)
        single = solve(weight, hessian, scheme, options, layer_name, tokens)
        same += int((single.weight.codes == codes).sum())
        total += codes.numel()
        loss += single.loss
        expected_loss += answer.loss
        if scheme.bits <= 3:
            rounded = rtn.solve(weight, scheme, layer=Layer(layer_name)).weight
            assert single.loss < quadratic_loss(weight, hessian, rounded)
    assert same / total >= 0.999
    assert loss == pytest.approx(expected_loss, rel=1e-3)


@pytest.mark.realdata
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_real_layer_in_float32_against_float64(real_layers, bits):
    """All 14 layers; float64 stands in for the oracle, which it equals (test above)."""
    same = total = 0
    loss = expected_loss = 0.0
    for name, (weight, hessian, tokens) in real_layers.items():
        single = solve(weight, hessian, Scheme(bits), layer=name, tokens=tokens)
        double = solve(weight.double(), hessian.double(), Scheme(bits), layer=name, tokens=tokens)
        same += int((single.weight.codes == double.weight.codes).sum())
        total += weight.numel()
        loss += single.loss
        expected_loss += double.loss
    assert same / total >= 0.999
    assert loss == pytest.approx(expected_loss, rel=1e-3)
