"""SVD: the nearest weight of a rank, stored as two factors (Greenformers; Eckart and Young)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Memory, NoOptions, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.budget import Budget
    from quant.factored import FactoredWeight

DEFAULT_OPTIONS, ANY_LAYER = NoOptions(), Layer()


def solve(
    weight: Tensor,
    scheme: Budget,
    prepared: None = None,  # noqa: ARG001
    options: NoOptions = DEFAULT_OPTIONS,  # noqa: ARG001
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Return W_r = sum of the r largest s_i u_i v_i^T of weight [out, in], as two factors.

    r is the largest rank whose factors the budget holds. Computes in float32 (float64 if weight is)
    and rounds the factors to float16. Raises NonFiniteError for weights that are not finite.
    """
    import torch

    from quant.grid import check_finite, working

    check_finite(weight, layer.name)
    left, values, right = torch.linalg.svd(working(weight), full_matrices=False)
    rank = rank_of(scheme, (weight.shape[0], weight.shape[1]))
    return Solution(factors(left[:, :rank] * values[:rank], right[:rank], scheme))


def rank_of(scheme: Budget, shape: tuple[int, int]) -> int:
    """Return the largest rank that a budget allows a weight (outputs, inputs); 0 if none."""
    from quant.forms.low_rank import most_rank

    return most_rank(shape, scheme.most_bytes(*shape))


def factors(left: Tensor, right: Tensor, scheme: Budget) -> FactoredWeight:
    """Return left [out, rank] right [rank, in] in float16, each pair of vectors equally large.

    So scaled, no number is near the ends of float16 unless the weights are.
    """
    import torch

    from quant.factored import FactoredWeight
    from quant.forms.low_rank import FORM

    sizes = left.abs().amax(0), right.abs().amax(1)
    scale = torch.where(sizes[0] > 0, (sizes[1] / sizes[0]).sqrt(), 1.0)
    scale = torch.where(scale > 0, scale, 1.0)
    held = {"left": left * scale, "right": right / scale[:, None]}
    return FactoredWeight(FORM, {name: part.half() for name, part in held.items()}, scheme)


def refuses_shape(options: object, scheme: Budget, shape: tuple[int, int]) -> str | None:  # noqa: ARG001
    """Too few bytes for rank 1."""
    from quant.forms.low_rank import stored_bits

    if rank_of(scheme, shape):
        return None
    least = stored_bits(shape, 1) / (shape[0] * shape[1])
    return (
        f"a layer of {shape[0]} outputs and {shape[1]} inputs may take "
        f"{scheme.most_bytes(*shape):,} bytes, and rank 1 takes {stored_bits(shape, 1) // 8:,}; "
        f"use scheme.budget={least + 0.01:.2f} or more"
    )


def oracle(weight: Tensor, scheme: Budget, *_: object) -> Tensor:
    """Project on the eigenvectors of W^T W with the largest eigenvalues."""
    import torch

    rank = rank_of(scheme, (weight.shape[0], weight.shape[1]))
    directions: Tensor = torch.linalg.eigh(weight.T @ weight).eigenvectors[:, -rank:]
    return weight @ directions @ directions.T


SOLVER = Solver(
    name="svd",
    label="SVD",
    solve=solve,
    oracle=oracle,
    memory=Memory(weights=6),
    factors=True,
    refuses_shape=refuses_shape,
)
