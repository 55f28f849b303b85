"""The layer Hessian H = 2/n * sum x x^T: accumulate, damp and factor it.

Equations and numbering follow the GPTQ paper, arXiv 2210.17323 (section 3.1 and 3.3, step 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from quant.drift import Drift
from quant.errors import CalibrationError, NonFiniteError, SingularHessianError
from quant.memory.heaps import own_zeros
from quant.products import add_gram, by_columns, mirror, product
from quant.tiling import BLOCKS

# Allowed difference of H_ij and H_ji: a share of sqrt(H_ii H_jj), which bounds both; plus rounding
# of a change of coordinates, in units of the dtype's epsilon, as a share of the trace, which bounds
# H. With few tokens some directions have no data, and both entries are nothing but such rounding.
ASYMMETRY = 1e-3
ROUNDING = 8
CHECKED_ROWS = 256  # compared at a time, with the columns from the first of them on


class Hessian:
    """Accumulator of 2/n * sum over tokens x x^T for one linear layer with `inputs` inputs.

    n counts sequences, not tokens, as in the authors' code. The solver does not depend on n; the
    printed losses do. drift: what is summed of the drift, with updates that have a reference.
    """

    def __init__(
        self,
        inputs: int,
        layer: str = "this layer",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        drift: Drift | None = None,
    ) -> None:
        self.inputs = inputs
        self.layer = layer
        self.tokens = 0
        self.sequences = 0
        # Upper triangle (add_gram) of a plain sum, scaled once in matrix(): a running mean rounds
        # with every batch (measured: 1.4 to 2 times the error). float32 ends at 10^38.
        self._sum = own_zeros((inputs, inputs), dtype, device)
        self._drift = Drift() if drift is None else drift

    @torch.no_grad()
    def update(
        self, inputs: Tensor, sequences: int | None = None, reference: Tensor | None = None
    ) -> None:
        """Add a batch of layer inputs [..., in] of any float dtype.

        With three dimensions or more the first one counts sequences; [tokens, in] is one sequence.
        `sequences` overrides that count for tokens that a router selected. `reference` has the
        inputs of the same tokens in the full-precision model, for `take_drift`. Raises
        NonFiniteError for NaN or infinite activations and leaves the sum unchanged.
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
        # cores take these types directly; elsewhere they are converted first.
        exact = rows.device.type == "cuda" and self._sum.dtype == torch.float32
        if not (exact and rows.dtype in (torch.float16, torch.bfloat16)):
            rows = rows.to(self._sum.dtype)
        if reference is not None:
            rows = by_columns(rows)  # once for both products
            beside = reference.detach().reshape(-1, self.inputs)
            self._drift.update(rows.to(self._sum), beside.to(self._sum))
        add_gram(self._sum, rows)
        self.tokens += rows.shape[0]
        counted = inputs.shape[0] if inputs.dim() > 2 else 1
        self.sequences += counted if sequences is None else sequences

    def matrix(self) -> Tensor:
        """Return H [in, in] in the accumulator's dtype; CalibrationError if no token was added."""
        return self._scaled(self._sum.clone())

    def take(self) -> Tensor:
        """As `matrix`, in the memory of the sum: nothing can be added or returned afterwards."""
        if self._sum.numel() == 0 < self.inputs:
            raise RuntimeError(f"{self.layer}: its Hessian was already taken.")
        taken, self._sum = self._sum, self._sum.new_empty(0, 0)
        return self._scaled(taken)

    def take_drift(self) -> Tensor | None:
        """Return D [in, in] = 2/n * sum (x - x~) x~^T, or W D; None without references.

        x are the inputs in the full-precision model, x~ those that were added to H. So the product
        of x and x~ is 2/n * sum x x~^T = H + D. It can be taken once.
        """
        return self._drift.take(self.sequences)

    def _scaled(self, matrix: Tensor) -> Tensor:
        if self.tokens == 0:
            raise CalibrationError(
                f"{self.layer}: no calibration token reached this layer; use more calibration "
                "text, or leave the layer out of quantization."
            )
        matrix.mul_(2.0 / self.sequences)
        mirror(matrix)
        return matrix

    def _require_finite(self, rows: Tensor) -> None:
        # One pass without a mask: a sum propagates NaN and infinity. A float16 sum would overflow.
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
    """A damped, factored Hessian; layers with the same inputs (q, k, v) can share one.

    root     R [in, in], upper triangular with H = R R^T, columns in the order of the column loop.
             Its inverse is the paper's U with H^-1 = U^T U (`upper`).
    order    int64 [in], the input of each step (act-order); None means natural order.
    dead     bool [in], inputs that were 0 on all calibration data, in natural order.
    damping  absolute value that was added to the diagonal.
    share    requested damping, as a share of the mean of the diagonal.
    used     damping share that was used: `share`, or the step of the damping ladder that was
             needed.
    kept     results of `panel` by their columns; None: they are not kept (`keeping`).
    """

    root: Tensor
    order: Tensor | None
    dead: Tensor
    damping: float
    share: float
    used: float
    kept: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    def keeping(self) -> Factor:
        """Return the factor with what `panel` returns kept for further solves: about half of R."""
        return replace(self, kept={})

    def panel(self, start: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return U_PP = (R_PP)^-1 and U_PP^T (R_{<P,P})^T [panel, start] for columns start .. end.

        The second, a product in `dtype`, turns the errors of earlier columns into the panel's
        updates. A factor is used with one dtype.
        """
        if self.kept is not None and (start, end) in self.kept:
            return self.kept[start, end]
        upper = self.inverse(start, end).to(dtype)
        found = upper, product(upper.T, self.root[:start, start:end].to(dtype).T)
        if self.kept is not None:
            self.kept[start, end] = found
        return found

    def block(self, steps: slice | Tensor) -> Tensor:
        """Return H [steps, steps], damped, of some steps of the loop, as R R^T of their rows.

        steps may be int64 indices. H itself is not kept.
        """
        rows = self.root[steps]
        return product(rows, rows.T)

    @cached_property
    def upper(self) -> Tensor:
        """U [in, in] = R^-1, computed on first use."""
        return self.inverse(0, len(self.root))

    def inverse(self, start: int, end: int) -> Tensor:
        """Return U[start:end, start:end], which equals the inverse of that diagonal block of R."""
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
    together: int = 1,
    ladder: Sequence[float] = (),
    blocked: bool = True,
    checked: bool = False,
) -> Factor:
    """Damp H [in, in] and factor it, in float32 (float64 if H is).

    The order of steps is that of the authors' code: set H_jj = 1 for dead inputs; sort columns by
    descending H_jj (act_order; ties keep natural order); add damping * mean(diag H) to the
    diagonal; compute the triangular factor. together: with act_order, so many adjacent columns, a
    group, stay side by side (`descending`). `tokens`, the number of calibration tokens, is used in
    errors. A Hessian that is singular with `damping` is factored again with each step of `ladder`;
    Factor.used says which step succeeded. blocked=False uses LAPACK for the whole factorization
    (the reference). checked: the same matrix was factored before and is not looked through again.
    Raises NonFiniteError and SingularHessianError; nothing is repaired silently.
    """
    layer = layer or "this layer"
    dead = dead_inputs(hessian, layer, tokens, checked)
    live = int((~dead).sum())
    shares = (damping, *ladder)
    for share in shares:
        matrix, order, absolute = condition(hessian, dead, share, together if act_order else 0)
        try:
            if share == 0 and tokens is not None and tokens < live:
                raise SingularHessianError("is singular")  # rounding could hide it from Cholesky
            root = blocked_root(matrix) if blocked else plain_root(matrix)
        except SingularHessianError as error:
            if share == shares[-1]:
                message = _singular_message(layer, str(error), shares, absolute, live, tokens)
                raise SingularHessianError(message) from error
        else:
            return Factor(root, order, dead, absolute, damping, share)
    raise AssertionError("unreachable: the last share returns or raises")


def dead_inputs(
    hessian: Tensor, layer: str, tokens: int | None = None, checked: bool = False
) -> Tensor:
    """Return which inputs were 0 on all calibration data, bool [in]; checked as in `factorize`.

    Raises NonFiniteError and ValueError for what is no Hessian, CalibrationError if all were 0.
    """
    if not checked:
        _check_matrix(hessian, layer)
    dead = hessian.diagonal() == 0
    if bool(dead.all()):
        seen = "" if tokens is None else f" on all of its {tokens} calibration tokens"
        raise CalibrationError(
            f"{layer}: every input is 0{seen}, or so small (below 1e-22) that its square is 0 in "
            "float32, so all of its weights would be quantized to 0; use other calibration text, "
            "look for damage in the layers before, or use method=rtn."
        )
    return dead


def descending(diagonal: Tensor, together: int = 1) -> Tensor:
    """Return the order int64 [in] of columns by descending H_jj; ties keep natural order.

    together  so many adjacent columns stay side by side: they are sorted among themselves, and
              these groups by their largest (group-aware reordering, Gafni et al., arXiv
              2505.14638). An unfinished last group stays last.
    """
    whole = len(diagonal) // together * together
    largest, within = diagonal[:whole].view(-1, together).sort(dim=1, descending=True, stable=True)
    groups = largest[:, 0].argsort(descending=True, stable=True)
    sorted_columns = (groups[:, None] * together + within[groups]).flatten()
    return torch.cat([sorted_columns, torch.arange(whole, len(diagonal))])


def condition(
    hessian: Tensor, dead: Tensor, share: float, together: int
) -> tuple[Tensor, Tensor | None, float]:
    """Return a damped copy of H in column-loop order, that order, and the absolute damping.

    together  of `descending`; 0: natural order.
    """
    dtype = torch.promote_types(hessian.dtype, torch.float32)
    matrix = hessian.detach().to(dtype, copy=True)
    diagonal = matrix.diagonal()
    diagonal[dead] = 1
    order = None
    if together:
        order = descending(diagonal, together)
        matrix = matrix[order][:, order]
        diagonal = matrix.diagonal()
    absolute = share * float(diagonal.mean())
    diagonal += absolute
    return matrix, order, absolute


def plain_root(matrix: Tensor) -> Tensor:
    """Return R [in, in], upper triangular with matrix = R R^T, for a positive definite matrix.

    Raises SingularHessianError whose message is only the predicate; the caller adds the layer.
    """
    # With J the reversal of the columns, J H J = L L^T gives R = J L J.
    lower, info = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(info):
        raise SingularHessianError("is not positive definite")
    root: Tensor = lower.flip(0, 1).contiguous()
    _check_pivots(root, matrix.diagonal())
    return root


def blocked_root(matrix: Tensor, block: int | None = None) -> Tensor:
    """Compute the same as plain_root in place: `matrix` becomes R.

    Block columns are factored from the last to the first. All but the small diagonal blocks is
    matrix products, which run several times closer to the processor's peak than LAPACK's
    factorization (measured), and no second matrix is needed (9.7 GB at 49152 inputs).
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
    # A pivot below the rounding error of its own column is noise: a factor computed from it would
    # be meaningless. (NaN fails the comparison too.)
    noise = torch.finfo(root.dtype).eps * diagonal
    if not bool((root.diagonal().square() > noise).all()):
        raise SingularHessianError("is singular to working precision")


def _check_matrix(hessian: Tensor, layer: str) -> None:
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"{layer}: the Hessian is {list(hessian.shape)}; it must be square.")
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
    """Raise ValueError unless H_ij and H_ji agree to rounding; block by block, to avoid a copy."""
    diagonal = hessian.diagonal().abs()
    scale, rounding = diagonal.sqrt(), ROUNDING * torch.finfo(hessian.dtype).eps * diagonal.sum()
    for start in range(0, len(hessian), CHECKED_ROWS):
        rows, rest = slice(start, start + CHECKED_ROWS), slice(start, None)
        below = hessian[rest, rows].T.contiguous()
        if torch.equal(hessian[rows, rest], below):  # as Hessian.take returns it
            continue
        apart = below.sub_(hessian[rows, rest]).abs_()
        wrong = apart > ASYMMETRY * scale[rows, None] * scale[rest] + rounding
        if bool(wrong.any()):
            row, column = (start + int(place) for place in wrong.nonzero()[0])
            raise ValueError(
                f"{layer}: the Hessian is not symmetric: it is {float(hessian[row, column]):.6g}"
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
