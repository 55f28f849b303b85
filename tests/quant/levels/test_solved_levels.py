"""GPTQ on the levels of NF4 and HQQ, code by code against the textbook's loop."""

from functools import partial

import numpy as np
import pytest
import torch

from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers.gptq import Options
from tests.oracles import textbook_gptq as textbook
from tests.oracles.textbook_bitsandbytes import NF4
from tests.oracles.textbook_hqq import rounded
from tests.quant.solving import solve

INPUTS = 44  # and a short last group of 16 or 20
MODES = [
    {},
    {"block_size": 7},
    {"act_order": True},
    {"act_order": True, "static_groups": True},
    {"group_grid": "stale", "block_size": 10},
]


def nf4(row: np.ndarray, dtype: str) -> textbook.Levels:
    """The table of QLoRA times the largest magnitude."""
    scale = textbook.as_stored(float(np.abs(row).max()), dtype)
    values = np.array([float(np.float32(number)) * scale for number in NF4])
    return textbook.Levels(values, scale, 0.0, nearest=True)


def hqq(row: np.ndarray, dtype: str) -> textbook.Levels:
    """A step of the range with 0 and a fractional zero-point; values rounded twice, as HQQ's."""
    low, high = min(0.0, float(row.min())), max(0.0, float(row.max()))
    scale = textbook.as_stored((high - low) / 7, dtype)
    zero = float(rounded(-low / scale, dtype))
    steps = [float(rounded(code - zero, dtype)) for code in range(8)]
    values = np.array([float(rounded(step * scale, dtype)) for step in steps])
    return textbook.Levels(values, scale, zero, nearest=True)


KINDS = {
    "nf4": (nf4, Scheme(4, 16, levels="nf4")),
    "nf4 of rows": (nf4, Scheme(4, None, levels="nf4", scale_dtype="float32")),
    "hqq": (hqq, Scheme(3, 24, levels="hqq")),
}


def layer(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and Hessian, float64, of correlated inputs of unequal size; one of them is dead."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = draw(200, INPUTS) @ draw(INPUTS, INPUTS) * draw(INPUTS)
    inputs[:, 3] = 0
    hessian = Hessian(INPUTS, dtype=torch.float64)
    hessian.update(inputs)
    return draw(3, INPUTS), hessian.matrix()


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gptq_equals_the_oracle(kind: str, mode: dict[str, object], kernel: str) -> None:
    find, scheme = KINDS[kind]
    options = Options(**{"block_size": 16, **mode})
    weight, hessian = layer(seed=len(str(mode)))
    solution = solve(weight, hessian, scheme, options, kernel=kernel)
    answer = textbook.solve(
        weight.numpy(),
        hessian.numpy(),
        scheme.bits,
        group_size=scheme.group_size,
        act_order=options.act_order,
        static_groups=options.static_groups,
        stale_block=options.block_size if options.group_grid == "stale" else None,
        own=lambda row: find(row, scheme.scale_dtype),
    )
    assert torch.equal(solution.weight.codes, torch.from_numpy(answer.codes).to(torch.uint8))
    assert torch.equal(solution.weight.grid["scale"].double(), torch.from_numpy(answer.scales))
    values = solution.weight.dequantize().double().numpy()
    np.testing.assert_allclose(values, answer.values, rtol=3e-7, atol=1e-12)
    assert solution.weight.column_groups().tolist() == answer.group_of.tolist()
    assert solution.loss == pytest.approx(answer.loss, rel=1e-9)
