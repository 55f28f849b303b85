"""OBQ as its paper has it: slow, float64, and sharing no line with quant/.

For every weight in turn, the explicit inverse of the Hessian of the weights that are left gives the
cost of rounding each and the optimal update of the others. One row at a time.
"""

from __future__ import annotations

import numpy as np


def greedy(
    row: np.ndarray, hessian: np.ndarray, levels: np.ndarray, outliers_first: bool
) -> tuple[np.ndarray, float]:
    """The level of every weight of a row, and the loss: half the sum of the costs.

    levels  [in, count], what each weight may become, ascending with equal steps.
    """
    row, left = row.astype(np.float64).copy(), list(range(len(row)))
    values, loss = np.empty(len(row)), 0.0
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        nearest = [levels[j][np.abs(levels[j] - row[j]).argmin()] for j in left]
        errors = [row[j] - value for j, value in zip(left, nearest, strict=True)]
        costs = [error**2 / inverse[i, i] for i, error in enumerate(errors)]
        beyond = [
            i
            for i, j in enumerate(left)
            if outliers_first and abs(errors[i]) > 0.51 * (levels[j][1] - levels[j][0])
        ]
        largest = max(beyond, key=lambda i, errors=errors: abs(errors[i]), default=None)
        chosen = int(np.argmin(costs)) if largest is None else largest
        values[left[chosen]] = nearest[chosen]
        loss += costs[chosen] / 2
        change = errors[chosen] / inverse[chosen, chosen] * inverse[:, chosen]
        for i, j in enumerate(left):
            row[j] -= change[i]
        left.pop(chosen)
    return values, loss
