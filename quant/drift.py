"""The drift D = 2/n * sum (x - x~) x~^T of a layer's inputs, or its product with a weight.

x are the inputs of a layer in the full-precision model, x~ those in the quantized one.
"""

from __future__ import annotations

from torch import Tensor

from quant.memory.heaps import own_zeros
from quant.products import add_drift, product


class Drift:
    """Accumulator of D [in, in], from differences.

    The difference of two sums would lose the digits that they share.

    upper   only what is on and above the diagonal is summed.
    weight  [out, in]: W D [out, in] is summed in the place of D, as sum (W (x - x~)) x~^T. That
            takes 2 out in products a token where D takes in^2.
    """

    def __init__(self, upper: bool = False, weight: Tensor | None = None) -> None:
        self._upper, self._weight = upper, weight
        self._sum: Tensor | None = None  # made by the first update

    def update(self, rows: Tensor, reference: Tensor) -> None:
        """Add x~ = rows [tokens, in] and x = reference, both in the dtype of the sum."""
        if self._weight is None:
            add_drift(self._total(rows, rows.shape[1]), rows, reference, self._upper)
            return
        self._weight = self._weight.to(rows)
        moved = product(reference - rows, self._weight.T)
        total = self._total(rows, moved.shape[1])
        total += product(moved.T, rows)

    def take(self, sequences: int) -> Tensor | None:
        """Return the sum times 2 / sequences, once; None without updates."""
        taken, self._sum = self._sum, None
        return None if taken is None else taken.mul_(2.0 / sequences)

    def _total(self, rows: Tensor, high: int) -> Tensor:
        if self._sum is None:
            self._sum = own_zeros((high, rows.shape[1]), rows.dtype, rows.device)
        return self._sum


def weighing(weight: Tensor) -> bool:
    """Whether W D takes fewer products than D for a weight [out, in]."""
    outputs, inputs = weight.shape
    return 2 * outputs < inputs
