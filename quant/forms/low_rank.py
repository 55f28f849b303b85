"""Low rank: W = left [out, rank] right [rank, in], both factors in float16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.forms.base import Form, Shape, Tensors

if TYPE_CHECKING:
    from torch import Tensor

BITS = 16  # of a number


def stored_bits(shape: Shape, rank: int) -> int:
    """Return the stored bits of the factors of a weight (outputs, inputs)."""
    return BITS * rank * sum(shape)


def most_rank(shape: Shape, most_bytes: int) -> int:
    """Return the largest rank whose factors take at most so many bytes; 0 if none fits."""
    return 8 * most_bytes // stored_bits(shape, 1)


def fault(tensors: Tensors) -> str | None:
    rank, other = tensors["left"].shape[1], tensors["right"].shape[0]
    return None if rank == other else f"has left of rank {rank} and right of rank {other}"


def shape(tensors: Tensors) -> Shape:
    return tensors["left"].shape[0], tensors["right"].shape[1]


def dense(tensors: Tensors) -> Tensor:
    return tensors["left"].float() @ tensors["right"].float()


def product(x: Tensor, tensors: Tensors) -> Tensor:
    """Two products, through the `rank` numbers between the factors."""
    return (x @ tensors["right"].to(x.dtype).T) @ tensors["left"].to(x.dtype).T


FORM = Form(
    name="low_rank",
    title="low rank",
    tensors={"left": ("float16", 2), "right": ("float16", 2)},
    fault=fault,
    shape=shape,
    dense=dense,
    product=product,
    way="two products",
)
