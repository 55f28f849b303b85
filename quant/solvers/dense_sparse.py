"""Dense times sparse: a weight as a dense matrix times a semi-structured sparse one (DSFormer).

W [out, in] becomes D S with D [out, inner] dense and S [inner, in] sparse: of every M adjacent
inputs a row of S uses N. DSFormer (arXiv 2312.13211) learns both through the task; here they are
fitted to W, in the metric of the Hessian of the layer's inputs, by alternating least squares:

    minimise tr((W - D S) H (W - D S)^T)    over D, and over S row by row.

Every step solves its least-squares problem exactly, so that no step after the first pass over the
rows raises the error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.forms.dense_sparse import PLACE_BITS, most_inner, pack, stored_bits
from quant.solvers import svd, svd_whitened
from quant.solvers.base import Layer, Memory, Solution, Solver, begin, finite_loss

if TYPE_CHECKING:
    from torch import Tensor

    from quant.budget import Budget
    from quant.hessian import Factor


@dataclass(frozen=True)
class Options:
    """Options of the fit.

    pattern  "N:M": N of M adjacent inputs; 2:4 is what sparse tensor cores multiply.
    sweeps   passes over all rows of S, each followed by one solution for D.
    damping  share of the mean of H's diagonal that is added to it; 0.01 as for GPTQ.
    """

    pattern: str = "2:4"
    sweeps: int = 8
    damping: float = 0.01

    def __post_init__(self) -> None:
        found = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", str(self.pattern))
        if found is None or int(found[2]) not in PLACE_BITS or int(found[1]) >= int(found[2]):
            raise ValueError(
                f"pattern={self.pattern!r} is not N:M with N below M, one of "
                f"{', '.join(map(str, PLACE_BITS))}; use 2:4, 1:4, 2:8 or the like."
            )
        if self.sweeps < 1:
            raise ValueError(f"sweeps={self.sweeps} fits nothing; use 1 or more.")
        svd_whitened.Options(self.damping)  # its message is the same

    @property
    def sizes(self) -> tuple[int, int]:
        """N and M."""
        used, group = self.pattern.split(":")
        return int(used), int(group)


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def prepare(
    hessian: Tensor, options: Options = DEFAULT_OPTIONS, layer: Layer = ANY_LAYER
) -> Factor:
    """Damp and factor H [in, in] = 2/n * sum x x^T for all layers with the same inputs."""
    return svd_whitened.prepare(hessian, svd_whitened.Options(options.damping), layer)


def solve(
    weight: Tensor,
    scheme: Budget,
    prepared: Factor,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Return weight [out, in] as D S of the largest inner size that the budget holds.

    Computes in float32, or in float64 if weight or Hessian is. S is rounded to float16 before D is
    solved for a last time. Weights of dead inputs are 0. loss is tr(E H E^T) / 2 of what is stored.
    Raises NonFiniteError for weights that are not finite.
    """
    from quant.forms.dense_sparse import FORM
    from quant.weight import FactoredWeight

    weight, dead = begin(weight, prepared, options.damping, False, layer.name)
    root = prepared.root
    inner = inner_of(options, scheme, (weight.shape[0], weight.shape[1]))
    fit = Fit(weight, root, inner, *options.sizes)
    for _ in range(options.sweeps):
        fit.sweep()
    fit.round()
    held = pack(fit.dense, fit.sparse, fit.mask, *options.sizes)
    found = FactoredWeight(FORM, held, scheme)
    loss = svd_whitened.loss_of(weight, found.dequantize(), root)
    return Solution(found, finite_loss(loss, SOLVER.label, layer.name), prepared.damping, dead)


class Fit:
    """The factors of W [out, in] while they are fitted, in the metric H = R R^T.

    dense   D [out, inner].
    sparse  S [inner, in]; mask, bool, says where it may be other than 0.
    rest    W - D S.

    They begin as the whitened SVD of rank `inner`, whose S has no zeros yet: the first sweep makes
    them, row by row, largest singular value first, and later rows make up for what it costs.
    """

    def __init__(self, weight: Tensor, root: Tensor, inner: int, used: int, group: int) -> None:
        import torch

        from quant.products import product

        self.weight, self.used, self.group = weight, used, group
        self.root, self.metric = root, product(root, root.T)
        self.scale = self.metric.diagonal().sqrt()
        self.dense = svd.directions(product(weight, root), inner).clone()
        self.sparse = self.dense.T @ weight
        self.mask = torch.ones_like(self.sparse, dtype=torch.bool)
        self.rest = weight - self.dense @ self.sparse

    def error(self) -> float:
        """Return tr((W - D S) H (W - D S)^T)."""
        return 2 * svd_whitened.loss_of(self.weight, self.dense @ self.sparse, self.root)

    def sweep(self) -> None:
        """Solve for every row of S, the others held, and then for D."""
        for row in range(len(self.sparse)):
            self._solve_row(row)
        self.solve_dense()

    def _solve_row(self, row: int) -> None:
        """Replace a row of S by the best one on the better of two masks: its own, and a new one.

        Without zeros the best row is t = s + d^T (W - D S) / |d|^2; on a mask I it is
        s_I = H_II^-1 (H t)_I. The new mask has in every group the largest |t_j| sqrt(H_jj).
        """
        column = self.dense[:, row]
        size = column @ column
        if not float(size):
            return
        old, mask = self.sparse[row].clone(), self.mask[row]
        target = old + column @ self.rest / size
        wanted = self._best_of_groups(target.abs() * self.scale)
        pull = self.metric @ target
        found = self._on(wanted, pull)
        began = not bool(mask.all())
        # The old row is on its mask, if no longer the best there.
        if began and self._distance(found - target) > self._distance(old - target):
            wanted, found = mask, self._on(mask, pull)
        self.sparse[row], self.mask[row] = found, wanted
        self.rest -= column[:, None] * (found - old)

    def _best_of_groups(self, scores: Tensor) -> Tensor:
        import torch

        groups = scores.view(-1, self.group)
        chosen = groups.topk(self.used, dim=1).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, chosen, True).flatten()

    def _on(self, mask: Tensor, pull: Tensor) -> Tensor:
        """Return the row [in] on a mask with H_II s_I = pull_I."""
        import torch

        places = mask.nonzero()[:, 0]
        held = self.metric.index_select(0, places).index_select(1, places)  # faster than indexing
        lower = torch.linalg.cholesky(held)
        row = torch.zeros_like(pull)
        row[places] = torch.cholesky_solve(pull[places, None], lower)[:, 0]
        return row

    def _distance(self, row: Tensor) -> float:
        return float(row @ self.metric @ row)

    def solve_dense(self) -> None:
        """Replace D by the minimiser W H S^T (S H S^T)^+; keep it if that is no better."""
        import torch

        from quant.products import product

        before, old = self.error(), self.dense
        seen = product(self.metric, self.sparse.T)
        gram = product(self.sparse, seen)
        inverse = torch.linalg.pinv(gram, hermitian=True)
        self.dense = product(product(self.weight, seen), inverse)
        if not self.error() <= before:
            self.dense = old
        self.rest = self.weight - product(self.dense, self.sparse)

    def round(self) -> None:
        """Scale the rows of S and the columns of D alike, round S to float16, and solve for D."""
        scale = svd.balance(self.dense, self.sparse)
        self.dense, self.sparse = self.dense * scale, self.sparse / scale[:, None]
        self.sparse = self.sparse.half().to(self.sparse)
        self.solve_dense()


def inner_of(options: Options, scheme: Budget, shape: tuple[int, int]) -> int:
    """Return the largest inner size that a budget allows a weight (outputs, inputs); 0 if none."""
    return most_inner(shape, *options.sizes, scheme.most_bytes(*shape))


def refuses_shape(options: Options, scheme: Budget, shape: tuple[int, int]) -> str | None:
    """Too few bytes for one row of the sparse factor, and inputs that groups do not divide."""
    used, group = options.sizes
    outputs, inputs = shape
    if inputs % group:
        return (
            f"a layer has {inputs} inputs, which groups of {group} do not divide; use another "
            "method.pattern, or method=svd_whitened"
        )
    if inner_of(options, scheme, shape):
        return None
    least = stored_bits(shape, 1, used, group)
    return (
        f"a layer of {outputs} outputs and {inputs} inputs may take "
        f"{scheme.most_bytes(*shape):,} bytes, and an inner size of 1 takes {-(-least // 8):,}; "
        f"use scheme.budget={least / (outputs * inputs) + 0.01:.2f} or more"
    )


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    words = {
        "pattern": options.pattern,
        "sweeps": f"{options.sweeps} sweeps",
        "damping": f"damp {options.damping}",
    }
    defaults = vars(DEFAULT_OPTIONS)
    return [word for name, word in words.items() if getattr(options, name) != defaults[name]]


def oracle(
    weight: Tensor, scheme: Budget, hessian: Tensor, damping: float, options: Options
) -> Tensor:
    """Take the same steps, each as a least-squares problem of its own in H^1/2, by QR."""
    import torch

    from quant.solvers import textbook

    wide = textbook.damped(hessian, damping)
    values, vectors = torch.linalg.eigh(wide)
    root = vectors * values**0.5 @ vectors.mT
    weight = weight.masked_fill(hessian.diagonal() == 0, 0)
    (used, group), inputs = options.sizes, weight.shape[1]
    inner = inner_of(options, scheme, (weight.shape[0], inputs))
    rising = torch.linalg.eigh(weight @ wide @ weight.T).eigenvectors
    dense: Tensor = rising.flip(1)[:, :inner].clone()
    sparse = dense.T @ weight

    def best(target: Tensor, places: list[int]) -> Tensor:
        row = torch.zeros_like(target)
        row[places] = torch.linalg.lstsq(root[:, places], root @ target).solution
        return row

    def far(row: Tensor, target: Tensor) -> float:
        return float((root @ (row - target)).norm())

    held: list[list[int] | None] = [None] * inner
    for _ in range(options.sweeps):
        for row, column in enumerate(dense.T):
            others = [other for other in range(inner) if other != row]
            left = weight - dense[:, others] @ sparse[others]
            target = column @ left / (column @ column)
            scores = target.abs() * wide.diagonal().sqrt()
            wanted = []
            for start in range(0, inputs, group):
                order = scores[start : start + group].argsort(descending=True)[:used]
                wanted += sorted(start + int(place) for place in order)
            found, mine = best(target, wanted), held[row]
            if mine is not None and far(found, target) > far(sparse[row], target):
                wanted, found = mine, best(target, mine)
            sparse[row], held[row] = found, wanted
        dense = torch.linalg.lstsq((sparse @ root).T, (weight @ root).T).solution.T.contiguous()
    return dense @ sparse


SOLVER = Solver(
    name="dense_sparse",
    label="Dense × sparse",
    solve=solve,
    options=Options,
    needs_calibration=True,
    uses_kernel=True,
    prepare=prepare,
    memory=Memory(weights=9, prepared=5, preparing=2),
    describe=describe,
    oracle=oracle,
    factors=True,
    refuses_shape=refuses_shape,
)
