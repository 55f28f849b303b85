"""Low rank and dense times sparse in numpy, float64: from definitions, without triangular roots."""

from __future__ import annotations

import numpy as np

Matrix = np.ndarray


def root_of(hessian: Matrix) -> Matrix:
    """The symmetric root of H."""
    values, vectors = np.linalg.eigh(hessian)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def error(difference: Matrix, hessian: Matrix) -> float:
    """tr(E H E^T)."""
    return float(np.trace(difference @ hessian @ difference.T))


def tail(weight: Matrix, rank: int, hessian: Matrix | None = None) -> float:
    """The least error of any matrix of a rank (Eckart and Young): the squares left of W H^1/2."""
    seen = weight if hessian is None else weight @ root_of(hessian)
    return float((np.linalg.svd(seen, compute_uv=False)[rank:] ** 2).sum())


def alternating(
    weight: Matrix, hessian: Matrix, rank: int, sweeps: int, seed: int
) -> tuple[Matrix, float]:
    """The best of random factors that are solved for in turn, and its error."""
    root, random = root_of(hessian), np.random.default_rng(seed)
    left = random.normal(size=(len(weight), rank))
    for _ in range(sweeps):
        right = np.linalg.lstsq(left, weight, rcond=None)[0]
        left = np.linalg.lstsq((right @ root).T, (weight @ root).T, rcond=None)[0].T
    return left @ right, error(weight - left @ right, hessian)


def row_on(target: Matrix, places: list[int], hessian: Matrix) -> Matrix:
    """The row on these inputs that is nearest to a target in the metric of H, by least squares."""
    root, row = root_of(hessian), np.zeros_like(target)
    row[places] = np.linalg.lstsq(root[:, places], root @ target, rcond=None)[0]
    return row
