"""Residual Hadamard: an orthogonal matrix; for norms that subtract the mean, one that keeps it."""

import pytest
import torch

from quant.transforms import residual_hadamard
from quant.transforms.residual_hadamard import Options, residual


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize("width", [4, 48, 64, 576])
def test_a_rotation_is_orthogonal_and_spreads_every_feature(width: int, keeps_mean: bool) -> None:
    change = residual(width, keeps_mean)
    identity = torch.eye(width, dtype=torch.float64)
    matrix = change.inputs(identity)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-13)
    ones = torch.ones(1, width, dtype=torch.float64)
    kept = torch.allclose(change.inputs(ones), ones, rtol=0, atol=1e-12)
    assert kept == keeps_mean
    # The largest share that one feature has of another: 1 / sqrt(n), or as random numbers have it.
    largest = matrix.abs().max() * width**0.5
    assert largest == pytest.approx(1) or (keeps_mean and largest < max(5, width**0.5))
    random = torch.randn(3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(change.weight(random), random @ matrix)
    hessian = random.T @ random
    torch.testing.assert_close(change.hessian(hessian), matrix.T @ hessian @ matrix)


def test_seeds_give_other_rotations() -> None:
    x = torch.randn(2, 64)
    assert torch.equal(residual(64, False).inputs(x), residual(64, False, Options(0)).inputs(x))
    assert not torch.equal(residual(64, False).inputs(x), residual(64, False, Options(1)).inputs(x))
    said = residual_hadamard.TRANSFORM.describe(Options(1))
    assert said == ["signs of seed 1"]


@pytest.mark.parametrize(("hidden", "refused"), [(576, False), (92, True), (6, True)])
def test_widths_without_a_matrix_are_refused(hidden: int, refused: bool) -> None:
    reason = residual_hadamard.TRANSFORM.refuses(Options(), hidden, [13696])
    assert (reason is not None) == refused
    if reason is not None:
        assert reason == (
            f"has no Hadamard matrix for hidden states of {hidden} features, which are no Paley "
            "order times a power of two: use transform=[hadamard] with a block_size"
        )
