"""Statistics of inputs: number by number, in batches, and after the changes before their reader."""

import numpy as np
import torch

from quant.calibrate.statistics import InputStatistics


def test_statistics_are_those_of_all_tokens() -> None:
    x = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0)).mul(3).add(0.5)
    x[..., 2], x[..., 3] = 0, -x[..., 3].abs()
    collected = InputStatistics(6)
    for batch in (x[:2], x[2:2], x[2:].reshape(-1, 6)):
        collected.update(batch)
    found = collected.result()
    for j, column in enumerate(x.double().reshape(-1, 6).T.tolist()):
        np.testing.assert_allclose(found.mean[j], sum(column) / 35, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.magnitude[j], sum(map(abs, column)) / 35, rtol=1e-12)
        assert (float(found.low[j]), float(found.high[j])) == (min(column), max(column))
        assert float(found.largest[j]) == max(map(abs, column))


def test_half_precision_is_summed_in_double() -> None:
    """float16 ends at 65504, and bfloat16 has 8 bits."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.full((3000, 2), 1000.0, dtype=dtype)
        collected = InputStatistics(2)
        collected.update(x)
        assert collected.result().mean.tolist() == [float(x[0, 0])] * 2


def test_statistics_follow_a_scaling() -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).double()
    scale = torch.tensor([0.5, 2.0, 3.0, 1.0]).double()
    plain, moved = InputStatistics(4), InputStatistics(4)
    plain.update(x)
    moved.update(x / scale)
    for name in ("mean", "magnitude", "low", "high", "largest"):
        found = getattr(plain.result().divided(scale), name)
        torch.testing.assert_close(found, getattr(moved.result(), name), rtol=1e-12, atol=1e-15)
