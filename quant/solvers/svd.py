"""SVD: the nearest weight of a rank, stored as two factors (Greenformers; Eckart and Young)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Memory, NoOptions, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.budget import Budget
    from quant.weight import FactoredWeight

DEFAULT_OPTIONS, ANY_LAYER = NoOptions(), Layer()


def solve(
    weight: Tensor,
    scheme: Budget,
    prepared: None = None,  # noqa: ARG001
    options: NoOptions = DEFAULT_OPTIONS,  # noqa: ARG001
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Return the sum of the r largest s_i u_i v_i^T of weight [out, in], as two factors.

    r is the largest rank whose factors the budget holds. Computes in float64, so that the float16
    factors do not depend on how a machine's LAPACK rounds. Raises NonFiniteError for weights that
    are not finite.
    """
    from quant.grid import check_finite

    check_finite(weight, layer.name)
    weight = weight.detach().double()
    left = directions(weight, rank_of(scheme, (weight.shape[0], weight.shape[1])))
    return Solution(factors(left, left.T @ weight, scheme))


def directions(weight: Tensor, count: int) -> Tensor:
    """Return the first left singular vectors [out, count] of weight [out, in].

    The largest number of each is positive, because LAPACK's signs differ between machines.
    """
    import torch

    left: Tensor = torch.linalg.svd(weight, full_matrices=False).U[:, :count]
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    return left * torch.where(largest < 0, -1.0, 1.0).to(left)


def rank_of(scheme: Budget, shape: tuple[int, int]) -> int:
    """Return the largest rank that a budget allows a weight (outputs, inputs); 0 if none."""
    from quant.forms.low_rank import most_rank

    return most_rank(shape, scheme.most_bytes(*shape))


def factors(left: Tensor, right: Tensor, scheme: Budget) -> FactoredWeight:
    """Return left [out, rank] right [rank, in] in float16, balanced."""
    from quant.forms.low_rank import FORM
    from quant.weight import FactoredWeight

    scale = balance(left, right)
    held = {"left": left * scale, "right": right / scale[:, None]}
    return FactoredWeight(FORM, {name: part.half() for name, part in held.items()}, scheme)


def balance(left: Tensor, right: Tensor) -> Tensor:
    """Return by what [rank] to multiply columns of left, and to divide rows of right.

    The largest numbers of both are equal then, and none is near the ends of float16 unless the
    weights are. 1 where one of them is 0.
    """
    import torch

    ours, other = left.abs().amax(0), right.abs().amax(1)
    return torch.where((ours > 0) & (other > 0), (other / ours).sqrt(), 1.0)


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
    memory=Memory(weights=18),  # measured: 16.2, half as many in float64
    factors=True,
    refuses_shape=refuses_shape,
)
