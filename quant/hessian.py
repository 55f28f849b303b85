"""The layer Hessian H = 2/n * sum x x^T: accumulated, conditioned and factored.

Equations and numbering of the GPTQ paper, arXiv 2210.17323 (section 3.1 and 3.3, step 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quant.errors import CalibrationError, NonFiniteError, SingularHessianError
from quant.memory.heaps import own_zeros
from quant.products import add_gram, mirror, product
from quant.tiling import BLOCKS

# Of two entries that mirror each other, as a share of sqrt(H_ii H_jj), which bounds both; and what
# a change of coordinates may round, in units of its type, as a share of the trace, which bounds H:
# where few tokens leave directions without any, both entries are such rounding and nothing else.
ASYMMETRY = 1e-3
ROUNDING = 8


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
        # Only the upper half is kept up to date (add_gram). A plain sum, scaled once in matrix(): a
        # running mean would rescale and round all that came before with every batch (measured: 1.4
        # to 2 times the error). It cannot overflow in practice: 10^9 tokens with activations of
        # 10^4 sum to 10^17 of float32's 10^38.
        self._sum = own_zeros((inputs, inputs), dtype, device)

    @torch.no_grad()
    def update(self, inputs: Tensor, sequences: int | None = None) -> None:
        """Add what the layer saw: inputs [..., in] of any float dtype.

        With three dimensions or more the first one counts sequences; [tokens, in] is one sequence.
        `sequences` says how many there are where the tokens do not: a router chose them.
        Raises NonFiniteError for NaN or infinite activations and leaves the sum untouched.
        """
        if inputs.shape[-1] != self.inputs:
            raise ValueError(
                f"{self.layer}: activations have {inputs.shape[-1]} features, "
                f"but the layer has {self.inputs} inputs."
            )
        rows = inputs.detach().reshape(-1, self.inputs)
        self._require_finite(rows)
        rows = rows.to(self._sum.device)
        # Products of float16 or bfloat16 numbers are exact in float32; only the sum rounds. Tensor
        # cores take them as they are, elsewhere they are widened.
        exact = rows.device.type == "cuda" and self._sum.dtype == torch.float32
        if not (exact and rows.dtype in (torch.float16, torch.bfloat16)):
            rows = rows.to(self._sum.dtype)
        add_gram(self._sum, rows)
        self.tokens += rows.shape[0]
        counted = inputs.shape[0] if inputs.dim() > 2 else 1
        self.sequences += counted if sequences is None else sequences

    def matrix(self) -> Tensor:
        """H [in, in], in the accumulator's dtype; CalibrationError when no token was seen."""
        if self.tokens == 0:
            raise CalibrationError(
                f"{self.layer}: no calibration token reached this layer; use more calibration "
                "text, or leave the layer out of quantization."
            )
        matrix = self._sum * (2.0 / self.sequences)
        mirror(matrix)
        return matrix

    def _require_finite(self, rows: Tensor) -> None:
        # One pass, nothing kept: NaN and infinity survive a sum. Halves would overflow in theirs.
        if torch.isfinite(rows.sum(dtype=self._sum.dtype)):
            return
        finite = torch.isfinite(rows)
        if finite.all():  # only the sum overflowed
            return
        token = int((~finite).nonzero()[0, 0])
        raise NonFiniteError(
            f"{self.layer}: {int((~finite).sum())} of {rows.numel()} input activations are NaN "
            f"or infinite (calibration sequence {self.sequences + 1}, first at token {token}); "
            "run the model in float32 or bfloat16, or look for damage in the layers before."
        )


@dataclass(frozen=True)
class Factor:
    """A conditioned, factored Hessian; layers with the same inputs (q, k, v) can share one.

    root     R [in, in], upper triangular with H = R R^T, columns in the order of the loop.
             Its inverse is the U of the paper, H^-1 = U^T U (`upper`).
    order    int64 [in], the input of each step (act-order); None for natural order.
    dead     bool [in], inputs that were 0 on all of the calibration data, natural order.
    damping  absolute value that was added to the diagonal.
    share    the same as a share of the mean of the diagonal, as it was asked for.
    used     the share that was used: `share`, or the step of the ladder that was needed.
    """

    root: Tensor
    order: Tensor | None
    dead: Tensor
    damping: float
    share: float
    used: float

    @cached_property
    def upper(self) -> Tensor:
        """U [in, in] = R^-1, made on first use."""
        return self.inverse(0, len(self.root))

    def inverse(self, start: int, end: int) -> Tensor:
        """U[start:end, start:end]: the inverse of a diagonal block is that block of the inverse."""
        block = self.root[start:end, start:end]
        identity = torch.eye(end - start, dtype=block.dtype, device=block.device)
        result: Tensor = torch.linalg.solve_triangular(block, identity, upper=True).contiguous()
        return result


@torch.no_grad()
def factorize(
    hessian: Tensor,
    damping: float = 0.01,
    act_order: bool = False,
    layer: str = "this layer",
    tokens: int | None = None,
    *,
    ladder: Sequence[float] = (),
    blocked: bool = True,
) -> Factor:
    """Condition H [in, in] and factor it, in float32 (float64 if H is).

    In this order, as in the authors' code: H_jj = 1 for dead inputs; columns sorted by descending
    H_jj (act_order; equal ones stay in natural order); damping * mean(diag H) added to the
    diagonal; triangular factor. `tokens`, how many were seen, makes errors say more. A Hessian that
    is singular with `damping` is tried again with every step of `ladder`; Factor.used says which
    one it took. blocked=False leaves the factorization to LAPACK as a whole (the reference).
    Raises NonFiniteError and SingularHessianError; nothing is repaired behind the caller's back.
    """
    layer = layer or "this layer"
    _check_matrix(hessian, layer)
    dead = hessian.diagonal() == 0
    live = int((~dead).sum())
    if not live:
        seen = "" if tokens is None else f" on all of its {tokens} calibration tokens"
        raise CalibrationError(
            f"{layer}: every input is 0{seen}, or so small (below 1e-22) that its square is 0 in "
            "float32: nothing says what its weights should be, and all of them would become 0; use "
            "other calibration text, look for damage in the layers before, or use method=rtn."
        )
    shares = (damping, *ladder)
    for share in shares:
        matrix, order, absolute = _condition(hessian, dead, share, act_order)
        try:
            if share == 0 and tokens is not None and tokens < live:
                raise SingularHessianError("is singular")  # rounding could hide what counting shows
            root = blocked_root(matrix) if blocked else plain_root(matrix)
        except SingularHessianError as error:
            if share == shares[-1]:
                message = _singular_message(layer, str(error), shares, absolute, live, tokens)
                raise SingularHessianError(message) from error
        else:
            return Factor(root, order, dead, absolute, damping, share)
    raise AssertionError("unreachable: the last share returns or raises")


def _condition(
    hessian: Tensor, dead: Tensor, share: float, act_order: bool
) -> tuple[Tensor, Tensor | None, float]:
    """A damped copy of H in the loop's order, that order, and what was added to the diagonal."""
    dtype = torch.promote_types(hessian.dtype, torch.float32)
    matrix = hessian.detach().to(dtype, copy=True)
    diagonal = matrix.diagonal()
    diagonal[dead] = 1
    order = None
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        matrix = matrix[order][:, order]
        diagonal = matrix.diagonal()
    absolute = share * float(diagonal.mean())
    diagonal += absolute
    return matrix, order, absolute


def plain_root(matrix: Tensor) -> Tensor:
    """R [in, in], upper triangular with matrix = R R^T, for a positive definite matrix.

    Raises SingularHessianError, saying only how the matrix fails: the caller knows of what layer.
    """
    # With J the reversal of the columns, J H J = L L^T gives R = J L J.
    lower, info = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(info):
        raise SingularHessianError("is not positive definite")
    root: Tensor = lower.flip(0, 1).contiguous()
    _check_pivots(root, matrix.diagonal())
    return root


def blocked_root(matrix: Tensor, block: int | None = None) -> Tensor:
    """The same as plain_root, in place: `matrix` becomes R.

    Block columns from the last to the first; all but the small diagonal blocks is matrix products,
    which run several times closer to the processor's limit than LAPACK's factorization (measured),
    and no second matrix is needed (9.7 GB at 49152 inputs).
    """
    size = block or BLOCKS.get(matrix.device.type, BLOCKS["cpu"])
    diagonal = matrix.diagonal().clone()
    for end in range(len(matrix), 0, -size):
        start = max(end - size, 0)
        column = matrix[:end, start:end]
        if end < len(matrix):
            column -= product(matrix[:end, end:], matrix[start:end, end:].T)
        root = plain_root(column[start:])
        column[start:] = root
        if start:
            identity = torch.eye(end - start, dtype=matrix.dtype, device=matrix.device)
            inverse = torch.linalg.solve_triangular(root, identity, upper=True)
            column[:start] = product(column[:start], inverse.T)
        matrix[end:, start:end] = 0
    _check_pivots(matrix, diagonal)
    return matrix


def _check_pivots(root: Tensor, diagonal: Tensor) -> None:
    # A pivot below the rounding error of its own column is noise: the factor would exist, the
    # answer would not. (NaN fails the comparison too.)
    noise = torch.finfo(root.dtype).eps * diagonal
    if not bool((root.diagonal().square() > noise).all()):
        raise SingularHessianError("is singular to working precision")


def _check_matrix(hessian: Tensor, layer: str) -> None:
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"{layer}: a Hessian is square, this one is {list(hessian.shape)}.")
    if torch.isfinite(hessian.sum()):  # one pass; NaN and infinity survive a sum
        _check_symmetric(hessian, layer)
        return
    count = int((~torch.isfinite(hessian)).sum())
    if count:
        raise NonFiniteError(
            f"{layer}: {count} of {hessian.numel()} entries of the Hessian are NaN or infinite; "
            "its calibration activations overflowed: run the model in float32 or bfloat16, or look "
            "for damage in the layers before."
        )


def _check_symmetric(hessian: Tensor, layer: str) -> None:
    """ValueError unless H_ij and H_ji agree to rounding; by blocks, so that no copy is made."""
    diagonal = hessian.diagonal().abs()
    scale, rounding = diagonal.sqrt(), ROUNDING * torch.finfo(hessian.dtype).eps * diagonal.sum()
    for start in range(0, len(hessian), 1024):
        rows = slice(start, start + 1024)
        apart = (hessian[rows] - hessian[:, rows].T).abs_()
        wrong = apart > ASYMMETRY * scale[rows, None] * scale + rounding
        if bool(wrong.any()):
            row, column = (int(place) for place in wrong.nonzero()[0])
            row += start
            raise ValueError(
                f"{layer}: a Hessian is symmetric, this one holds {float(hessian[row, column]):.6g}"
                f" at [{row}, {column}] and {float(hessian[column, row]):.6g} at [{column}, {row}]."
            )


def _singular_message(
    layer: str,
    how: str,
    shares: Sequence[float],
    absolute: float,
    live: int,
    tokens: int | None,
) -> str:
    tried = ", then ".join(f"{share:g}" for share in shares)
    what = f"{layer}: the Hessian {how} with damping {tried} ({absolute:.3g} absolute)"
    way = "raise damping (0.01 is the paper's, 0.1 is strong)"
    if len(shares) == 1:
        way += ", allow more of it with damping_ladder,"
    if tokens is not None and tokens < live:
        return (
            f"{what}: {tokens} calibration tokens cannot span {live} live inputs; use at least "
            f"{live} tokens (several times more is usual) or {way.rstrip(',')}."
        )
    seen = "" if tokens is None else f" of {tokens} calibration tokens"
    return (
        f"{what}: some of the {live} live inputs{seen} are linear combinations of others; {way} or "
        "use more varied calibration text."
    )
