"""Schemes: what can exist, how it is named, what it costs."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import SchemeError
from quant.scheme import BITS, GRIDS, SCALE_DTYPES, Scheme


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bits": 9}, ["bits=9", "2, 3, 4, 5, 6, 7, 8"]),
        ({"bits": 16}, ["bits=16"]),
        ({"bits": 4, "group_size": 0}, ["group_size=0", "null"]),
        ({"bits": 4, "group_size": -1}, ["group_size=-1"]),
        ({"bits": 4, "grid": "max"}, ["grid='max'", "minmax, mse"]),
        ({"bits": 4, "levels": "binary"}, ["levels='binary'", "ternary, uniform"]),
        ({"bits": 4, "scale_dtype": "int8"}, ["scale_dtype='int8'", "bfloat16"]),
        ({"bits": 3, "levels": "ternary"}, ["bits=2"]),
        ({"bits": 2, "levels": "ternary", "symmetric": True}, ["symmetric=false"]),
        ({"bits": 2, "levels": "ternary", "grid": "mse"}, ["grid=minmax"]),
    ],
)
def test_impossible_schemes_name_the_value_and_the_way_out(fields, words):
    with pytest.raises(SchemeError) as error:
        Scheme(**fields)
    for word in words:
        assert word in str(error.value)


def test_a_scheme_is_a_frozen_value():
    assert Scheme(4) == Scheme(4, group_size=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scheme(4).bits = 3


@pytest.mark.parametrize(
    ("scheme", "name", "max_code"),
    [
        (Scheme(4), "w4", 15),
        (Scheme(3, 128), "w3g128", 7),
        (Scheme(8, symmetric=True), "w8_sym", 255),
        (Scheme(2, 64, grid="mse"), "w2g64_mse", 3),
        (Scheme(4, 32, symmetric=True, grid="mse"), "w4g32_sym_mse", 15),
        (Scheme(2, 8, levels="ternary"), "ternary_g8", 2),
        (Scheme(2, levels="ternary"), "ternary", 2),
        (Scheme(5, 64), "w5g64", 31),
        (Scheme(4, 128, scale_dtype="bfloat16"), "w4g128_bf16", 15),
        (Scheme(3, grid="mse", scale_dtype="float32"), "w3_mse_fp32", 7),
    ],
)
def test_names_and_codes(scheme, name, max_code):
    assert scheme.name == name
    assert scheme.max_code == max_code


names = st.builds(
    dict,
    bits=st.integers(2, 8),
    group_size=st.one_of(st.none(), st.integers(1, 4096)),
    symmetric=st.booleans(),
    grid=st.sampled_from(GRIDS),
    scale_dtype=st.sampled_from(list(SCALE_DTYPES)),
)


@settings(max_examples=300, deadline=None)
@given(names, st.booleans())
def test_every_name_is_read_back(fields, ternary):
    if ternary:
        fields |= {"bits": 2, "symmetric": False, "grid": "minmax", "levels": "ternary"}
    scheme = Scheme(**fields)
    assert Scheme.parse(scheme.name) == scheme
    assert re.fullmatch(r"[a-z0-9_]+", scheme.name)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("w4", Scheme(4)),
        ("w5g64", Scheme(5, 64)),
        ("w3g64_sym", Scheme(3, 64, symmetric=True)),
        ("w2g32_mse", Scheme(2, 32, grid="mse")),
        ("w4g128_bf16", Scheme(4, 128, scale_dtype="bfloat16")),
        ("w4_fp32", Scheme(4, scale_dtype="float32")),
        ("ternary", Scheme(2, levels="ternary")),
        ("ternary_g8", Scheme(2, 8, levels="ternary")),
        ("w4g32_fp32_mse_sym", Scheme(4, 32, True, grid="mse", scale_dtype="float32")),
    ],
)
def test_names_that_people_write(name, scheme):
    assert Scheme.parse(name) == scheme


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w9", ["'w9': 9 is not a bit width", "w2, w3, w4, w5, w6, w7, w8"]),
        ("w16", ["16 is not a bit width"]),
        ("w04", ["04 is not a bit width"]),
        ("w", ["w has no bit width", "w4"]),
        ("w4g", ["g has no number of columns", "w4g128"]),
        ("w4g0", ["g0 is not a number of columns", "w4g128"]),
        ("w4g064", ["g064", "without leading zeros"]),
        ("w4g64x", ["'g64x' cannot follow w4", "w4g128"]),
        ("w4-sym", ["'-sym' cannot follow w4", "with _"]),
        ("w4g64sym", ["'g64sym' cannot follow w4"]),
        ("w4_foo", ["_foo is unknown", "_sym, _mse, _hessian, _bf16, _fp32"]),
        ("w4_", ["_ is unknown"]),
        ("w4_g64", ["_g64 is unknown", "directly after w4, as in w4g128"]),
        ("w4_mse_mse", ["_mse sets grid a second time"]),
        ("w4_bf16_fp32", ["_fp32 sets scale_dtype a second time"]),
        ("ternary_sym", ["_sym is unknown", "_bf16, _fp32"]),
        ("ternaryg8", ["'g8' cannot follow ternary", "ternary_g128"]),
        ("ternary_g", ["g has no number", "ternary_g128"]),
        ("ternary4", ["is not the name of a scheme", "ternary, w4"]),
        ("fp4g32", ["is not the name of a scheme", "ternary, w4"]),
        ("W4", ["is not the name of a scheme"]),
        ("", ["'' is not the name of a scheme"]),
    ],
)
def test_wrong_names_say_which_part_and_what_would_fit(name, words):
    with pytest.raises(SchemeError) as error:
        Scheme.parse(name)
    assert "\n" not in str(error.value)
    for word in (repr(name), *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ("base", ["levels='base' is unknown", "ternary, uniform"]),
        ("..uniform", ["levels='..uniform' is unknown"]),
        ("nowhere.at_all", ["levels='nowhere.at_all' cannot be imported", "No module named"]),
        ("json.decoder", ["levels='json.decoder'", "LEVELS = Levels(...)"]),
    ],
)
def test_levels_that_are_not_there(levels, words):
    with pytest.raises(SchemeError) as error:
        Scheme(4, levels=levels)
    for word in words:
        assert word in str(error.value)


def test_the_last_group_may_be_short():
    """576 inputs (SmolLM2-135M) in groups of 128: four and a half."""
    assert Scheme(4, 96).groups(192) == 2
    assert Scheme(4).groups(192) == 1
    assert Scheme(4, 128).groups(576) == 5
    assert Scheme(4, 128).groups(64) == 1
    assert [Scheme(4, 128).short_group(inputs) for inputs in (576, 64, 512)] == [True, True, False]
    assert not Scheme(4).short_group(576)
    assert Scheme(4, 128).bits_per_weight(576) == pytest.approx(4 + 20 * 5 / 576)


def test_schemes_are_made_without_torch():
    code = (
        "import sys; from quant.scheme import Scheme; Scheme.parse('ternary_g8'); Scheme(3).name; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bits_per_weight_counts_scales_and_zeros():
    assert Scheme(3, 128).bits_per_weight(1024) == pytest.approx(3 + 19 / 128)
    assert Scheme(3, 1024).bits_per_weight(4096) == pytest.approx(3.02, abs=0.003)  # the paper's
    assert Scheme(2, 32).bits_per_weight(4096) == pytest.approx(2.6, abs=0.04)  # the paper's
    assert Scheme(4, scale_dtype="float32").bits_per_weight(100) == pytest.approx(4.36)
    assert Scheme(2, 8, levels="ternary").bits_per_weight(64) == pytest.approx(2 + 32 / 8)
    for bits in BITS:
        assert bits < Scheme(bits).bits_per_weight(256) < bits + 0.1


HEADED = [
    ("w4g64_head_w8g32", Scheme(4, 64, head=Scheme(8, 32))),
    (
        "w3_sym_head_w6_mse_fp32",
        Scheme(3, symmetric=True, head=Scheme(6, grid="mse", scale_dtype="float32")),
    ),
    ("ternary_g8_head_w8", Scheme(2, 8, levels="ternary", head=Scheme(8))),
]


@pytest.mark.parametrize(("name", "scheme"), HEADED)
def test_a_head_has_a_scheme_of_its_own_in_the_name(name: str, scheme: Scheme) -> None:
    assert scheme.name == name
    assert Scheme.parse(name) == scheme
    assert scheme.without_head.name == name.partition("_head_")[0]
    assert scheme.without_head.without_head == scheme.without_head


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scheme(4, head=Scheme(8, head=Scheme(8))), "is not the scheme of one layer"),
        (lambda: Scheme(4, head="w8"), r"head='w8' is not the scheme .* Scheme\(bits=8"),
        (lambda: Scheme(4, head=Scheme(2, levels="ternary")), "use uniform"),
        (lambda: Scheme.parse("w4_head_ternary"), "w4_head_ternary: head.levels=ternary"),
        (lambda: Scheme.parse("w4_head_w9"), "'w9': 9 is not a bit width"),
        (lambda: Scheme.parse("w4_head"), "_head is unknown"),
    ],
)
def test_heads_that_cannot_be(make: Callable[[], Scheme], words: str) -> None:
    with pytest.raises(SchemeError, match=words):
        make()
