"""LDLQ and Babai's nearest plane as their papers have them: slow, float64, nothing of quant/.

Both round one row w [in] to multiples of a step of each column, against a positive definite H
[in, in]. `low` and `high` [in] bound the multiples.

LDLQ (QuIP, arXiv 2307.13304, section 3.1): with H = (F + I) D (F + I)^T, F strictly upper
triangular and D diagonal, column k is rounded to the level nearest to w_k + (w - q)_{<k} F_{<k,k},
from the first to the last. Nearest plane (Babai 1986, in the words of arXiv 2507.18553): the
columns of a matrix B with B^T B = H, each times its step, are the basis of a lattice; of the target
B w the multiple of the last basis vector is taken whose plane is nearest, and of what is left the
multiple of the one before it, to the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Rounded:
    """Multiples [in], what each rounding changed [in], and whether a bound was exceeded."""

    multiples: np.ndarray
    rounding: np.ndarray
    clipped: bool


def ldl(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F [in, in] and the diagonal of D [in] of H = (F + I) D (F + I)^T, by elimination."""
    left = np.array(hessian, dtype=np.float64)
    count = len(left)
    unit, diagonal = np.eye(count), np.zeros(count)
    for k in reversed(range(count)):
        diagonal[k] = left[k, k]
        unit[:k, k] = left[:k, k] / left[k, k]
        for i in range(k):
            for j in range(k):
                left[i, j] -= unit[i, k] * diagonal[k] * unit[j, k]
    return unit - np.eye(count), diagonal


def ldlq(
    weight: np.ndarray, hessian: np.ndarray, steps: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Rounded:
    """Round a row from the first column to the last."""
    feedback, _ = ldl(hessian)
    count = len(weight)
    found, rounding, error = np.zeros(count, dtype=np.int64), np.zeros(count), np.zeros(count)
    clipped = False
    for k in range(count):
        wanted = weight[k] + error[:k] @ feedback[:k, k]
        nearest = round(float(wanted / steps[k]))
        found[k] = min(max(nearest, low[k]), high[k])
        clipped |= bool(found[k] != nearest)
        error[k] = weight[k] - steps[k] * found[k]
        rounding[k] = wanted - steps[k] * found[k]
    return Rounded(found, rounding, clipped)


def babai(
    weight: np.ndarray, hessian: np.ndarray, steps: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Rounded:
    """Round a row from the last column to the first; B is the symmetric root of H."""
    values, vectors = np.linalg.eigh(hessian)
    root = (vectors * np.sqrt(values)) @ vectors.T
    basis, count = root * steps, len(weight)
    planes = np.zeros_like(basis)  # their normals: Gram-Schmidt from the first vector to the last
    for k in range(count):
        normal = basis[:, k].copy()
        for j in range(k):
            normal -= (normal @ planes[:, j]) / (planes[:, j] @ planes[:, j]) * planes[:, j]
        planes[:, k] = normal
    left, clipped = root @ weight, False
    found, rounding = np.zeros(count, dtype=np.int64), np.zeros(count)
    for k in reversed(range(count)):
        wanted = (left @ planes[:, k]) / (planes[:, k] @ planes[:, k])
        nearest = round(float(wanted))
        found[k] = min(max(nearest, low[k]), high[k])
        clipped |= bool(found[k] != nearest)
        rounding[k] = (wanted - found[k]) * steps[k]
        left = left - found[k] * basis[:, k]
    return Rounded(found, rounding, clipped)
