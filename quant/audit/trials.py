"""Trials: which column order and damping of GPTQ a layer's codes fit, found on some of its rows.

GPTQ solves every row of a weight on its own, so that a sample of rows tells. Most dampings are told
apart without a factorization of the whole Hessian. Let d = w - q be the errors of a checkpoint's
own codes in all columns before the last ones, P. The loop (quant.solvers.columns) would have had in
these

    w'_P = w_P + d_{<P} R_{<P,P} U_PP = w_P + d_{<P} H_{<P,P} (H_PP + damping)^-1,

because R is upper triangular (H + damping = R R^T, U_PP = R_PP^-1) and damping is added to the
diagonal alone. So the codes of P follow from a factor of H_PP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quant.audit.grids import rows_of, solved, stored_grids
from quant.audit.loops import followed, greedy
from quant.audit.moments import Moments, Order
from quant.errors import SingularHessianError
from quant.hessian import Factor, plain_root
from quant.products import product
from quant.solvers.columns import Groups, column_loop
from quant.weight import QuantizedWeight

DAMPING, OTHERS = 0.01, (0.05, 0.1, 0.001)  # the paper's, and others that producers use
USUAL = (DAMPING, *OTHERS)
# Dampings at which a solver may have followed this text all the same, and steps between two.
WIDE = tuple(10 ** (power / 4) for power in range(-16, 5))
NEAR = tuple(10 ** (power / 16) for power in (-3, -2, -1, 1, 2, 3))
SAMPLE = 64  # rows
LAST = 128  # columns P
EXACT = 0.995  # share of equal codes from which on no other damping is tried
# Share of codes that are the solver's step by step from which on they are its own (docs/audit.md:
# at 3 bits 99.4 % and more of a producer who had the text; of other samples of it 96 % and less,
# but for a layer that one input dominates).
FOLLOWED = 0.99
NATURAL, ACT_ORDER = Order(False), Order(True)


@dataclass(frozen=True)
class Likeness:
    """How alike a layer's codes and the solver's are, at the order and damping that fit best.

    agreement  share of codes that the solver has too.
    followed   share of codes that the solver would choose where they are, behind the layer's own
               codes in the columns before (quant.audit.loops).
    same_as    damping and order, in words.
    """

    agreement: float
    followed: float
    same_as: str


class Trials:
    """GPTQ in several column orders and with several dampings, on rows spread over a layer.

    weight [out, in] is that of the grids of `found`. Act-order that keeps groups together is tried
    where neither of the others fits.
    """

    def __init__(
        self, weight: Tensor, found: QuantizedWeight, inputs: Moments, kernel: str, layer: str
    ) -> None:
        self._weight, self._found, self._inputs = weight, found, inputs
        self._kernel, self._layer = kernel, layer
        rows = slice(None, None, -(-len(weight) // SAMPLE))
        self._part, self._some = rows_of(found, rows), weight[rows]
        self._tried = {order: self._try(DAMPING, order) for order in (NATURAL, ACT_ORDER)}

    @cached_property
    def better_order(self) -> Order:
        """Natural or act-order: the one of the smaller error, at the usual damping."""
        errors = [
            self._inputs.loss(self._some - self._tried[order].dequantize())
            for order in (NATURAL, ACT_ORDER)
        ]
        return ACT_ORDER if errors[1] < errors[0] else NATURAL

    def better(self) -> QuantizedWeight:
        """Solve all rows with the usual damping in the better order."""
        factor = self._inputs.factor(DAMPING, self.better_order, self._layer)
        return solved(self._weight, self._found, factor, self._kernel)

    def most_alike(self, better: QuantizedWeight) -> Likeness:
        """Return the likeness at the order and damping of the largest share of equal codes.

        If that is `better`, all of its rows are counted for this share.
        """
        shares = {order: self._equal(each) for order, each in self._tried.items()}
        order = max(shares, key=lambda each: shares[each])
        best = self._alike(order, shares[order], better)
        for grouped in self._by_groups if best.followed < FOLLOWED else ():
            other = self._alike(grouped, self._equal(self._try(DAMPING, grouped)), better)
            best = max(best, other, key=lambda each: each.followed)
        return best

    def _alike(self, order: Order, usual: float, better: QuantizedWeight) -> Likeness:
        share, damping = self._damped(order, usual)
        if (damping, order) == (DAMPING, self.better_order):
            share = float((better.codes == self._found.codes).float().mean())
        words = f"damping {damping:g}{f', {order}' if order.act_order else ''}"
        factor = self._inputs.factor(damping, order, self._layer)
        return Likeness(share, followed(self._some, self._part, factor), words)

    def any_loop(self, act_order: bool) -> tuple[float, str]:
        """Return the largest share that a loop on this text follows step by step, and that loop.

        Tried are dampings up to 10, a greedy loop, and the solver in its first columns alone, where
        one follows that corrects nothing across blocks.
        """
        orders = [ACT_ORDER, *self._by_groups] if act_order else [NATURAL]
        shares = dict(part for order in orders for part in self._loops(order))
        words = max(shares, key=lambda each: shares[each])
        return shares[words], words

    def _loops(self, order: Order) -> Iterator[tuple[str, float]]:
        said = f", {order}" if order.act_order else ""
        usual = self._inputs.factor(DAMPING, order, self._layer)
        loop = greedy(self._inputs, usual)
        yield f"a greedy loop's (GPFQ){said}", followed(self._some, self._part, loop)
        fits = dict(self._fits(order, WIDE))
        near = max(fits, key=lambda each: fits[each])
        fits |= dict(self._fits(order, [near * step for step in NEAR]))
        best = max(fits, key=lambda each: fits[each])
        for damping in dict.fromkeys((best, *USUAL)):
            words = f"the solver's at damping {damping:.2g}{said}"
            try:
                factor = self._inputs.factor(damping, order, self._layer, keep=False)
            except SingularHessianError:  # no solver could have used it
                continue
            whole = followed(self._some, self._part, factor)
            yield words, whole
            if whole < FOLLOWED and self._inputs.size > LAST:
                share = followed(self._some, self._part, factor, LAST)
                if share >= FOLLOWED:  # errors of few columns are small, whatever the text
                    yield f"{words}, but in its first {LAST} columns alone", share

    @property
    def _by_groups(self) -> list[Order]:
        """Act-order that keeps groups together, if the layer has such groups."""
        size = self._found.scheme.group_size
        return [] if size is None or self._found.group_index is not None else [Order(True, size)]

    def _damped(self, order: Order, usual: float) -> tuple[float, float]:
        """The share of equal codes and the damping that fit best; `usual`: at the usual one."""
        if usual >= EXACT:
            return usual, DAMPING
        fits = dict(self._fits(order))
        other = max(fits, key=lambda each: fits[each])
        share = usual if other == DAMPING else self._equal(self._try(other, order))
        return (share, other) if share > usual else (usual, DAMPING)

    def _try(self, damping: float, order: Order) -> QuantizedWeight:
        factor = self._inputs.factor(damping, order, self._layer)
        return solved(self._some, self._part, factor, self._kernel)

    def _equal(self, one: QuantizedWeight) -> float:
        return float((one.codes == self._part.codes).float().mean())

    def _fits(
        self, tried: Order, dampings: Sequence[float] = USUAL
    ) -> Iterator[tuple[float, float]]:
        """Yield every damping with the share of equal codes in the last columns of an order."""
        usual = self._inputs.factor(DAMPING, tried, self._layer)
        hessian, part = self._inputs.matrix, self._part
        order = torch.arange(len(hessian)) if usual.order is None else usual.order
        order = order[~usual.dead[order]]  # of no influence on the others
        before, last = order[:-LAST], order[-LAST:]
        pull = product((self._some - part.dequantize())[:, before], hessian[before][:, last])
        alive = torch.zeros(len(last), dtype=torch.bool)
        grids, index = stored_grids(part), part.column_groups()[last].tolist()
        for damping in dampings:
            absolute = usual.damping * damping / DAMPING
            block = hessian[last][:, last]
            block.diagonal().add_(absolute)
            try:
                root = plain_root(block)
            except SingularHessianError:  # no solver could have used it
                continue
            factor = Factor(root, None, alive, absolute, damping, damping)
            columns = self._some[:, last] + pull @ factor.upper.T @ factor.upper
            codes, _ = column_loop(
                columns.T.contiguous(),
                factor,
                Groups(list(grids), index, False, len(last)),
                part.scheme,
                LAST,
                self._kernel,
                self._layer,
            )
            yield damping, float((part.codes[:, last] == codes.T).float().mean())
