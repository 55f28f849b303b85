"""What rounding holds at once, whatever the levels: the plan counts on it."""

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quant.scheme import Scheme
from quant.solvers import rtn
from quant.tiling import ENCODED_WEIGHTS

SHAPE = (1024, 1024)


class Held(TorchDispatchMode):
    """The most bytes that tensors made inside held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
                self.now += size * (self._tensors[place] == 0)
                self._tensors[place] += 1
                weakref.finalize(each, self._freed, place, size)
        self.most = max(self.most, self.now)
        return result

    def _freed(self, place: int, size: int) -> None:
        self._tensors[place] -= 1
        self.now -= size * (self._tensors[place] == 0)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, 64),
        Scheme(4, 64, levels="hqq"),
        Scheme(4, 64, levels="nf4"),
        Scheme(4, 16, levels="nvfp4"),
        Scheme(3, 16, levels="q3_k"),
    ],
    ids=lambda scheme: scheme.name,
)
def test_it_holds_no_more_than_the_plan_says(scheme: Scheme) -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert weight.numel() == 4 * ENCODED_WEIGHTS  # so that most of what is held is of a part
    with Held() as held:
        values = rtn.solve(weight, scheme).weight.dequantize()
        torch.linalg.vector_norm(weight - values)
    matrices = held.most / (4 * weight.numel()) + 1  # and the weight
    assert 2 < matrices < rtn.SOLVER.memory.weights


def test_parts_of_a_layer_have_the_codes_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(70, 48, generator=torch.Generator().manual_seed(1))
    for scheme in (
        Scheme(4),
        Scheme(3, 20),
        Scheme(4, 16, levels="hqq"),
        Scheme(4, 16, levels="nf4"),
    ):
        whole = rtn.solve(weight, scheme).weight.codes
        monkeypatch.setattr("quant.grid.ENCODED_WEIGHTS", 100)
        assert torch.equal(rtn.solve(weight, scheme).weight.codes, whole)
        monkeypatch.undo()
