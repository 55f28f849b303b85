"""The layer Hessian H = 2/n * sum x x^T: accumulated, conditioned and factored.

Equations and numbering of the GPTQ paper, arXiv 2210.17323 (section 3.1 and 3.3, step 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import CalibrationError, NonFiniteError, SingularHessianError


class Hessian:
    """Accumulator of 2/n * sum over tokens x x^T for one linear layer with `inputs` inputs.

    n counts sequences, not tokens, as in the authors' code: the solver does not depend on it, the
    printed losses do.
    """

    def __init__(
        self,
        inputs: int,
        layer: str = "this layer",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.inputs = inputs
        self.layer = layer
        self.tokens = 0
        self.sequences = 0
        # A plain sum, scaled once in matrix(): a running mean would rescale and round all that came
        # before with every batch (measured: 1.4 to 2 times the error). It cannot overflow in
        # practice: 10^9 tokens with activations of 10^4 sum to 10^17 of float32's 10^38.
        self._sum = torch.zeros(inputs, inputs, dtype=dtype, device=device)

    @torch.no_grad()
    def update(self, inputs: Tensor) -> None:
        """Add what the layer saw: inputs [..., in] of any float dtype.

        With three dimensions or more the first one counts sequences; [tokens, in] is one sequence.
        Raises NonFiniteError for NaN or infinite activations and leaves the sum untouched.
        """
        if inputs.shape[-1] != self.inputs:
            raise ValueError(
                f"{self.layer}: activations have {inputs.shape[-1]} features, "
                f"but the layer has {self.inputs} inputs."
            )
        rows = inputs.detach().reshape(-1, self.inputs)
        finite = torch.isfinite(rows)
        if not finite.all():
            token = int((~finite).nonzero()[0, 0])
            raise NonFiniteError(
                f"{self.layer}: {int((~finite).sum())} of {rows.numel()} input activations are NaN "
                f"or infinite (calibration sequence {self.sequences + 1}, first at token {token}); "
                "run the model in float32 or bfloat16, or look for damage in the layers before."
            )
        # Products of float16 or bfloat16 numbers are exact in float32; only the sum rounds.
        rows = rows.to(self._sum.device, self._sum.dtype)
        # The product is made apart: added to the large sum term by term, inside one addmm_, each
        # token rounds at the size of the sum (measured: 2 to 4 times the error).
        self._sum += rows.T @ rows
        self.tokens += rows.shape[0]
        self.sequences += inputs.shape[0] if inputs.dim() > 2 else 1

    def matrix(self) -> Tensor:
        """H [in, in], in the accumulator's dtype; CalibrationError when no token was seen."""
        if self.tokens == 0:
            raise CalibrationError(
                f"{self.layer}: no calibration token reached this layer; use more calibration "
                "text, or leave the layer out of quantization."
            )
        return self._sum * (2.0 / self.sequences)


@dataclass(frozen=True)
class Factor:
    """A conditioned, factored Hessian; layers with the same inputs (q, k, v) can share one.

    upper    U [in, in], upper triangular with H^-1 = U^T U, columns in sweep order.
    order    int64 [in], the input swept at each step (act-order); None for natural order.
    dead     bool [in], inputs that were 0 on all of the calibration data, natural order.
    damping  absolute value that was added to the diagonal.
    share    the same as a share of the mean of the diagonal, as it was asked for.
    """

    upper: Tensor
    order: Tensor | None
    dead: Tensor
    damping: float
    share: float


@torch.no_grad()
def factorize(
    hessian: Tensor,
    damping: float = 0.01,
    act_order: bool = False,
    layer: str = "this layer",
    tokens: int | None = None,
) -> Factor:
    """Condition H [in, in] and factor its inverse, in float32 (float64 if H is).

    In this order, as in the authors' code: H_jj = 1 for dead inputs; columns sorted by descending
    H_jj (act_order; equal ones stay in natural order); damping * mean(diag H) added to the
    diagonal; upper Cholesky factor of H^-1. `tokens`, how many were seen, makes errors say more.
    Raises NonFiniteError and SingularHessianError; nothing is repaired behind the caller's back.
    """
    layer = layer or "this layer"
    _check_matrix(hessian, layer)
    matrix = hessian.detach().clone()
    if matrix.dtype != torch.float64:
        matrix = matrix.float()
    diagonal = matrix.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    order = None
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        matrix = matrix[order][:, order]
        diagonal = matrix.diagonal()
    absolute = damping * float(diagonal.mean())
    diagonal += absolute
    live = int((~dead).sum())
    try:
        if damping == 0 and tokens is not None and tokens < live:
            raise SingularHessianError("is singular")  # rounding could hide what counting shows
        upper = inverse_cholesky(matrix)
    except SingularHessianError as error:
        message = _singular_message(layer, str(error), damping, absolute, live, tokens)
        raise SingularHessianError(message) from error
    return Factor(upper, order, dead, absolute, damping)


def inverse_cholesky(matrix: Tensor) -> Tensor:
    """U [in, in], upper triangular with matrix^-1 = U^T U, for a positive definite matrix.

    Raises SingularHessianError, saying only how the matrix fails: the caller knows of what layer.
    """
    # With J the reversal of the columns, J H J = L L^T gives H = R R^T for the upper triangular
    # R = J L J, so U = R^-1 = J L^-1 J: one factorisation and one triangular inverse. Inverting H
    # and factoring the inverse, as the paper writes it, costs twice as much and loses more digits.
    lower, info = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(info):
        raise SingularHessianError("is not positive definite")
    # A pivot below the rounding error of its own column is noise: the factor would exist, the
    # answer would not.
    noise = torch.finfo(matrix.dtype).eps * matrix.diagonal().flip(0)
    if bool((lower.diagonal().square() <= noise).any()):
        raise SingularHessianError("is singular to working precision")
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1).contiguous()


def _check_matrix(hessian: Tensor, layer: str) -> None:
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"{layer}: a Hessian is square, this one is {list(hessian.shape)}.")
    finite = torch.isfinite(hessian)
    if not finite.all():
        count = int((~finite).sum())
        raise NonFiniteError(
            f"{layer}: {count} of {hessian.numel()} entries of the Hessian are NaN or infinite; "
            "its calibration activations overflowed: run the model in float32 or bfloat16, or look "
            "for damage in the layers before."
        )


def _singular_message(
    layer: str, how: str, damping: float, absolute: float, live: int, tokens: int | None
) -> str:
    what = f"{layer}: the Hessian {how} with damping {damping:g} ({absolute:.3g} absolute)"
    if tokens is not None and tokens < live:
        return (
            f"{what}: {tokens} calibration tokens cannot span {live} live inputs; use at least "
            f"{live} tokens (several times more is usual) or raise damping (0.01 is the paper's, "
            "0.1 is strong)."
        )
    seen = "" if tokens is None else f" of {tokens} calibration tokens"
    return (
        f"{what}: some of the {live} live inputs{seen} are linear combinations of others; raise "
        "damping (0.01 is the paper's, 0.1 is strong) or use more varied calibration text."
    )
