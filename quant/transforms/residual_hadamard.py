"""Residual Hadamard: rotate the residual stream by a randomized Hadamard matrix, into the weights.

Hidden states h between the blocks become h R with an orthogonal R, and all weights that read or
write them take R in (QuaRot, arXiv 2404.00456, section 4), so nothing is computed at run time and
any format holds the result. The inputs that only a block knows (of the down projection, of the
output projection) are not rotated; transform=[residual_hadamard,hadamard] rotates these too.

For models whose norms do not subtract the mean, R = diag(s) H / sqrt(n) with random signs s. For
those that do, R = H diag(s) H^T / n with s_0 = 1: the first column of H is all ones, so the mean of
h is what it was (our construction; QuaRot exchanges such norms for others instead).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.hadamard import hadamard_product, paley_order, random_signs
from quant.transforms.base import Transform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Options:
    """seed  of the random signs."""

    seed: int = 0


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True)
class Rotation:
    """h' = h R.

    signs       int8 [n], 1 or -1; the first is 1 if the mean is kept.
    keeps_mean  whether R = H diag(s) H^T / n, which keeps the mean; else R = diag(s) H / sqrt(n).
    """

    signs: Tensor
    keeps_mean: bool

    def inputs(self, x: Tensor) -> Tensor:
        n = len(self.signs)
        signs = self.signs.to(x)
        if self.keeps_mean:
            return hadamard_product(hadamard_product(x) * (signs / n), transposed=True)
        return hadamard_product(x, factors=signs / math.sqrt(n))

    def weight(self, weight: Tensor) -> Tensor:
        return self.inputs(weight)  # R is orthogonal: R^-T = R

    def hessian(self, matrix: Tensor) -> Tensor:
        # R^T (H R) is the transpose of (H R)^T R, and symmetric.
        return self.inputs(self.inputs(matrix).T)


def residual(hidden: int, keeps_mean: bool, options: Options = DEFAULT_OPTIONS) -> Rotation:
    """Return the rotation of hidden states with so many features."""
    signs = random_signs(hidden, options.seed, "residual")
    if keeps_mean:
        signs[0] = 1
    return Rotation(signs, keeps_mean)


def refuses(_options: Options, hidden: int, _widths: Sequence[int]) -> str | None:
    """Say why hidden states of this width cannot be rotated; None if they can."""
    if paley_order(hidden) is not None:
        return None
    return (
        f"has no Hadamard matrix for hidden states of {hidden} features, which are no Paley order "
        "times a power of two: use transform=[hadamard] with a block_size"
    )


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    return [] if options.seed == 0 else [f"signs of seed {options.seed}"]


TRANSFORM = Transform(
    name="residual_hadamard",
    label="residual Hadamard",
    residual=residual,
    options=Options,
    describe=describe,
    refuses=refuses,
)
