"""Schemes of single layers, and schemes that are chosen, from a configuration to a cell."""

from collections.abc import Callable

import pytest

from harness.cell.resolve import resolve
from harness.cell.schemes import make_scheme
from harness.config.schema import AutoConfig, CellConfig, OutsideConfig, SchemeConfig
from harness.errors import ConfigError
from quant.allocation import Allocation
from quant.scheme import Scheme

Make = Callable[..., CellConfig]
AUTO = ["scheme=auto", "scheme.auto.candidates=[w2g16,w4g16]", "scheme.bits=4"]


def test_schemes_of_layers_and_candidates() -> None:
    layers = {"*.fc2": "w4g64", "*.0.*.q_proj": "w2g32_mse"}
    found = make_scheme(SchemeConfig(bits=3, group_size=64, layers=layers))
    expected = (("*.fc2", Scheme(4, 64)), ("*.0.*.q_proj", Scheme(2, 32, grid="mse")))
    assert found == Scheme(3, 64, layers=expected)
    auto = AutoConfig(candidates=["w2", "w3g32"], sensitivity="kld", tokens=64)
    head = OutsideConfig(bits=8)
    assert make_scheme(SchemeConfig(bits=2.5, auto=auto, head=head)) == Allocation(
        2.5, (Scheme(2), Scheme(3, 32)), "kld", 64, head=Scheme(8)
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["scheme=w3g16", "scheme.layers={*.up: w4}"],
            r"scheme.layers\[\*.up\]=w4 is the pattern",
        ),
        (["scheme=w3g16", "scheme.layers={*.fc2: w9}"], r"scheme.layers\[\*.fc2\]: 'w9': 9 is not"),
        (["scheme=w3g16", "scheme.layers={*.fc2: nf4g16}"], "scheme: layers.* has nf4 levels"),
        (["scheme=w3g16", "scheme.layers={*.fc2: w4, *.1.*: w2}"], r"1.fc2 two schemes \(\*.fc2"),
        (["scheme=w3", "scheme.bits=3.5"], "3.5 is not a bit width of one scheme: use scheme=auto"),
        ([*AUTO, "scheme.bits=2.5"], r"bits=2.5 is less than all candidates have: .* w2g16 with 3"),
        ([*AUTO, "scheme.bits=6"], r"bits=6 is more than all .* w4g16 with 5.25 bits a weight"),
        ([*AUTO, "scheme.group_size=16"], "scheme.group_size=16 has no effect beside scheme=auto"),
        ([*AUTO, "scheme.layers={*.fc2: w2}"], "scheme.layers=.* has no effect beside scheme=auto"),
        ([*AUTO, "scheme.auto.candidates=[w4]"], "scheme.auto.candidates=.*leaves no choice"),
        ([*AUTO, "scheme.auto.candidates=[w4,w1]"], "scheme.auto.candidates: 'w1': 1 is not a bit"),
        ([*AUTO, "scheme.auto.sensitivity=x"], "scheme.auto.sensitivity='x' is unknown"),
        ([*AUTO, "calib=none"], "scheme=auto needs calibration text"),
        ([*AUTO, "transform=[equalize]", "scheme.auto.sensitivity=kld"], "transform equalize chan"),
        ([*AUTO, "method=none"], "method=none does not quantize"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(
    tiny_cell: Make, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(tiny_cell(*overrides))


def test_keys_have_what_moves_the_choice_and_nothing_else(tiny_cell: Make) -> None:
    def key(*overrides: str) -> str:
        found = resolve(tiny_cell(*overrides))
        return found.keys.cell  # type: ignore[union-attr]

    plain = key("scheme=w3g16")
    assert key("scheme=w3g16", "scheme.layers={}") == plain
    layers = key("scheme=w3g16", "scheme.layers={*.fc2: w4}")
    assert len({plain, layers, key("scheme=w3g16", "scheme.layers={*.fc1: w4}")}) == 3
    auto = key(*AUTO)
    # The number of tokens is an option of kld alone.
    assert key(*AUTO, "scheme.auto.tokens=64") == auto
    kld = key(*AUTO, "scheme.auto.sensitivity=kld")
    assert key(*AUTO, "scheme.auto.sensitivity=kld", "scheme.auto.tokens=64") != kld
    assert len({auto, kld, key(*AUTO, "scheme.bits=4.5"), key(*AUTO, "calib.sequences=3")}) == 4
