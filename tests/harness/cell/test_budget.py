"""A budget as the scheme of a cell: composed, keyed, refused where it does not fit."""

from collections.abc import Callable

import pytest

from harness.config.schema import CellConfig
from harness.errors import ConfigError
from harness.report.progress import _bits
from quant.budget import Budget
from tests.harness.cells import cell_of

Make = Callable[..., CellConfig]


def test_a_budget_is_a_file_with_a_number_or_a_name(tiny_cell: Make) -> None:
    by_file = cell_of(tiny_cell("method=svd", "scheme=budget", "scheme.budget=6.5"))
    by_name = cell_of(tiny_cell("method=svd", "scheme=budget6.5"))
    assert by_file.choices.scheme == by_name.choices.scheme == Budget(6.5)
    assert by_file.keys.cell == by_name.keys.cell
    assert by_name.identity.scheme == "budget6.5"
    scheme = by_name.keys.semantic["scheme"]
    assert scheme == {"kind": "budget", "bits": 6.5, "group_size": None}
    other = cell_of(tiny_cell("method=svd", "scheme=budget6.25"))
    assert other.keys.cell != by_name.keys.cell
    assert _bits("budget6.5") == 6.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=svd", "scheme=w4"], "SVD stores no codes on a grid; use scheme=budget with"),
        (["method=gptq", "scheme=budget4"], "GPTQ gives weights codes on a grid; use a scheme"),
        (["method=none", "scheme=budget4"], "method=none does not quantize, but the scheme has 4"),
        (["method=svd", "scheme=budget4", "scheme.group_size=8"], "budget=4 has no codes, groups"),
        (["method=svd", "scheme=budget4", "scheme.head.bits=8"], "no codes, groups, levels, grid"),
        (["method=svd", "scheme=budget20"], "budget=20 is not a number of bits per weight to save"),
        (["method=svd", "scheme=budget0.5"], r"method=svd scheme=budget0.5 cannot be used .* rank"),
        (["method=svd", "scheme=budget6", "transform=[equalize]"], r"transform=\[equalize\] makes"),
        (
            ["method=dense_sparse", "scheme=budget6", "method.pattern=4:4"],
            "pattern='4:4' is not N:M",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_the_plan(
    tiny_cell: Make, overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        cell_of(tiny_cell(*overrides))
