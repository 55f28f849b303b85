"""Schemes: what can exist, how it is named, what it costs."""

import dataclasses

import pytest

from quant.scheme import BITS, Scheme, SchemeError


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bits": 5}, ["bits=5", "2, 3, 4, 8"]),
        ({"bits": 16}, ["bits=16"]),
        ({"bits": 4, "group_size": 0}, ["group_size=0", "null"]),
        ({"bits": 4, "group_size": -1}, ["group_size=-1"]),
        ({"bits": 4, "grid": "max"}, ["grid='max'", "minmax, mse"]),
        ({"bits": 4, "levels": "binary"}, ["levels='binary'", "uniform, ternary"]),
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
    ],
)
def test_names_and_codes(scheme, name, max_code):
    assert scheme.name == name
    assert scheme.max_code == max_code


def test_groups_must_divide_and_the_error_offers_divisors():
    assert Scheme(4, 96).groups(192) == 2
    assert Scheme(4).groups(192) == 1
    with pytest.raises(SchemeError, match=r"mlp\.fc1.*group_size=128.*192 inputs.*8, 16, 32, 64"):
        Scheme(4, 128).groups(192, "mlp.fc1")
    with pytest.raises(SchemeError, match="such as 7"):
        Scheme(4, 2).groups(7)


def test_bits_per_weight_counts_scales_and_zeros():
    assert Scheme(3, 128).bits_per_weight(1024) == pytest.approx(3 + 19 / 128)
    assert Scheme(3, 1024).bits_per_weight(4096) == pytest.approx(3.02, abs=0.003)  # the paper's
    assert Scheme(2, 32).bits_per_weight(4096) == pytest.approx(2.6, abs=0.04)  # the paper's
    assert Scheme(4, scale_dtype="float32").bits_per_weight(100) == pytest.approx(4.36)
    assert Scheme(2, 8, levels="ternary").bits_per_weight(64) == pytest.approx(2 + 32 / 8)
    for bits in BITS:
        assert bits < Scheme(bits).bits_per_weight(256) < bits + 0.1
