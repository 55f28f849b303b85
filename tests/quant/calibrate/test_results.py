"""Results in memory are packed, and come back bit for bit."""

from pathlib import Path

import pytest
import torch

from quant.calibrate.results import KeptWeights
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.weight import QuantizedWeight


def rounded(scheme: Scheme, inputs: int = 96) -> QuantizedWeight:
    weight = torch.randn(7, inputs, generator=torch.Generator().manual_seed(scheme.bits))
    return rtn.SOLVER.solve(weight, scheme, None, rtn.SOLVER.options()).weight


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(2, 32),
        Scheme(3, 32),
        Scheme(4, 32),
        Scheme(5),
        Scheme(8),
        Scheme(2, levels="ternary"),
    ],
    ids=lambda scheme: scheme.name,
)
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_a_weight_comes_back_bit_for_bit(scheme: Scheme, on_disk: bool, tmp_path: Path) -> None:
    weight, kept = rounded(scheme), KeptWeights(tmp_path / "kept" if on_disk else None)
    kept.add({"a": weight, "b": weight})
    kept.pack(["a"])
    kept.pack(["a"])  # again changes nothing
    assert kept["b"] is weight
    found = kept["a"]
    assert found.scheme == scheme
    assert torch.equal(found.codes, weight.codes)
    assert found.codes.dtype == torch.uint8
    assert found.grid.keys() == weight.grid.keys()
    assert all(torch.equal(found.grid[name], part) for name, part in weight.grid.items())
    assert list(kept) == ["a", "b"]
    assert len(kept) == 2


def test_columns_keep_their_groups() -> None:
    plain, kept = rounded(Scheme(4, 32)), KeptWeights()
    index = torch.arange(96, dtype=torch.int32).flip(0) // 32
    kept.add({"a": QuantizedWeight(plain.codes, plain.scheme, index, plain.grid)})
    kept.pack(["a"])
    assert torch.equal(kept["a"].group_index, index)


def test_three_bits_take_three_bits() -> None:
    weight, kept = rounded(Scheme(3, 32), inputs=3200), KeptWeights()
    kept.add({"a": weight})
    kept.pack(["a"])
    words = kept._held["a"].words.get()  # type: ignore[union-attr]
    assert words.nbytes == 7 * 3200 * 3 // 8


def test_a_file_holds_what_memory_would_and_leaves_nothing_behind(tmp_path: Path) -> None:
    weights = {str(bits): rounded(Scheme(bits, 32)) for bits in (2, 3, 4)}
    kept = KeptWeights(tmp_path)
    kept.add(weights)
    kept.pack(weights)
    assert all(torch.equal(kept[name].codes, weights[name].codes) for name in reversed(list(kept)))
    assert not list(tmp_path.iterdir())
