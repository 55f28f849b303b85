"""SVD of the whitened weight: the weight of a rank whose outputs are nearest (SVD-LLM, ASVD).

With H = R R^T the Hessian of the layer's inputs, tr((W - Q) H (W - Q)^T) = ||(W - Q) R||^2. R is
invertible, so the best Q of rank r is the best approximation of W R of rank r, U_r U_r^T W R with
the first left singular vectors U_r of W R, times R^-1: Q = U_r U_r^T W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.solvers import svd
from quant.solvers.base import Layer, Memory, Solution, Solver, begin, finite_loss

if TYPE_CHECKING:
    from torch import Tensor

    from quant.budget import Budget
    from quant.hessian import Factor


@dataclass(frozen=True)
class Options:
    """damping  share of the mean of H's diagonal that is added to it; 0.01 as for GPTQ."""

    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1:
            raise ValueError(
                f"damping={self.damping} is not a share of the Hessian's diagonal; use 0.01, or a "
                "number from 0 (no damping) to 1."
            )


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def prepare(
    hessian: Tensor, options: Options = DEFAULT_OPTIONS, layer: Layer = ANY_LAYER
) -> Factor:
    """Damp and factor H [in, in] = 2/n * sum x x^T for all layers with the same inputs."""
    from cuda_ext.ops import resolve_kernel
    from quant.hessian import factorize

    blocked = resolve_kernel(layer.kernel, hessian.device) != "reference"
    return factorize(
        hessian, options.damping, layer=layer.name, tokens=layer.tokens, blocked=blocked
    )


def solve(
    weight: Tensor,
    scheme: Budget,
    prepared: Factor,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Return the best weight of the budget's rank in the metric of the damped H, as two factors.

    Computes in float32, or in float64 if weight [out, in] or the Hessian is, and rounds the factors
    to float16. Weights of dead inputs are 0. loss is tr(E H E^T) / 2 of what is stored, which for
    GPTQ is the loss, too. Raises NonFiniteError for weights that are not finite.
    """
    from quant.products import product

    weight, dead = begin(weight, prepared, options.damping, False, layer.name)
    root, rank = prepared.root, svd.rank_of(scheme, (weight.shape[0], weight.shape[1]))
    left = svd.directions(product(weight, root), rank)
    found = svd.factors(left, product(left.T, weight), scheme)
    loss = finite_loss(loss_of(weight, found.dequantize(), root), SOLVER.label, layer.name)
    return Solution(found, loss, prepared.damping, dead)


def loss_of(weight: Tensor, values: Tensor, root: Tensor) -> float:
    """Return tr(E H E^T) / 2 of E = W - Q [out, in], with H = R R^T."""
    from quant.products import product

    return float(product(weight - values.to(weight), root).double().square().sum()) / 2


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    return [] if options == DEFAULT_OPTIONS else [f"damp {options.damping}"]


def oracle(weight: Tensor, scheme: Budget, hessian: Tensor, damping: float, *_: object) -> Tensor:
    """Project on the largest eigenvectors of H^1/2 W^T W H^1/2, with the symmetric root."""
    import torch

    from quant.solvers import textbook

    values, vectors = torch.linalg.eigh(textbook.damped(hessian, damping))
    root, back = (vectors * power @ vectors.mT for power in (values**0.5, values**-0.5))
    live = weight.masked_fill(hessian.diagonal() == 0, 0)
    projected: Tensor = svd.oracle(live @ root, scheme) @ back
    return projected


SOLVER = Solver(
    name="svd_whitened",
    label="SVD, whitened",
    solve=solve,
    options=Options,
    needs_calibration=True,
    uses_kernel=True,
    prepare=prepare,
    memory=Memory(weights=9, prepared=2, preparing=2),  # measured: 8 beside the factor
    describe=describe,
    oracle=oracle,
    factors=True,
    refuses_shape=svd.refuses_shape,
)
