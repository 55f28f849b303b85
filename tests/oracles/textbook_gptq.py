"""GPTQ as the textbook has it: slow, float64, and sharing no line with quant/.

For every column in turn the explicit inverse of the Hessian of the columns that are left gives the
optimal update (OBQ, equation 2 of arXiv 2210.17323): no Cholesky factor, no blocks, no in-place
tricks. Rows are quantized one number at a time. The loss is the quadratic form itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SHARES = [1 - 0.02 * step for step in range(40)]  # of the range, tried by the MSE grid


@dataclass
class Levels:
    """What one row may become, in one group: a list of values, in the order of their codes."""

    values: np.ndarray
    scale: float
    zero: float  # ternary: magnitude of the negative level
    nearest: bool = False  # the nearest of the values, whatever they are


def as_stored(value: float, dtype: str) -> float:
    """value rounded to float32, then to the storage type, by numpy; subnormal float16 upward."""
    value = float(np.float32(value))
    if dtype == "float16" and abs(value) < 2.0**-14:
        return math.copysign(math.ceil(abs(value) * 2**24) / 2**24, value)
    return float({"float16": np.float16, "float32": np.float32}[dtype](value))


def uniform_levels(low: float, high: float, bits: int, symmetric: bool, dtype: str) -> Levels:
    count = 2**bits
    smallest = {"float16": 2.0**-24, "float32": 2.0**-126}[dtype]
    scale = max(as_stored((high - low) / (count - 1), dtype), smallest)
    zero = count // 2 if symmetric else min(max(round(-low / scale), 0), count - 1)
    return Levels(np.array([scale * (code - zero) for code in range(count)]), scale, zero)


def find_levels(
    row: np.ndarray,
    bits: int,
    symmetric: bool = False,
    ternary: bool = False,
    mse: bool = False,
    dtype: str = "float16",
    metric: np.ndarray | None = None,
) -> Levels:
    """The levels of one row (or one group of a row).

    mse: those of SHARES of the range with the least squared error; metric: with the least e H e^T.
    """
    low, high = min(0.0, float(row.min())), max(0.0, float(row.max()))
    if ternary:
        low, high = as_stored(low, dtype), as_stored(high, dtype)
        return Levels(np.array([low, 0.0, high]), high, -low)
    if symmetric:
        high = max(high, -low)
        low = -high
    if low == high:
        low, high = -1.0, 1.0
    best = uniform_levels(low, high, bits, symmetric, dtype)
    if mse or metric is not None:
        weights = np.eye(len(row)) if metric is None else metric
        candidates = [
            uniform_levels(low * share, high * share, bits, symmetric, dtype) for share in SHARES
        ]
        errors = []
        for levels in candidates:
            error = np.array([levels.values[code_of(w, levels)] - w for w in row])
            errors.append(float(error @ weights @ error))
        best = candidates[int(np.argmin(errors))]
    return best


def code_of(weight: float, levels: Levels) -> int:
    """The code of one weight: python's round() is half to even, as the paper's quantizer."""
    if levels.nearest:
        return int(np.argmin(np.abs(levels.values - weight)))
    if len(levels.values) == 3:
        if weight > levels.values[2] / 2:
            return 2
        return 0 if weight < levels.values[0] / 2 else 1
    return int(min(max(round(weight / levels.scale) + levels.zero, 0), len(levels.values) - 1))


@dataclass
class Answer:
    codes: np.ndarray  # [out, in]
    values: np.ndarray  # [out, in]
    scales: np.ndarray  # [out, groups]
    group_of: np.ndarray  # [in]
    loss: float  # (W - Q) H (W - Q)^T / 2, summed over rows; dead weights count as 0


def solve(
    weight: np.ndarray,
    hessian: np.ndarray,
    bits: int,
    *,
    group_size: int | None = None,
    symmetric: bool = False,
    ternary: bool = False,
    mse: bool = False,
    dtype: str = "float16",
    damping: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    stale_block: int | None = None,
    own: Callable[[np.ndarray], Levels] | None = None,
    together: Callable[[np.ndarray], list[Levels]] | None = None,
    span: int = 1,
    weighted: bool = False,
) -> Answer:
    """Quantize weight [out, in] against hessian [in, in].

    The last group holds the columns that are left. stale_block: group grids come from the weights
    at the last multiple of so many steps. own: finds the levels of one row (or group of one)
    in place of what the other arguments describe. together: those of `span` neighbouring groups of
    one row at once. weighted: the grid of a group is that of least e H e^T, H damped.
    """
    weight = np.array(weight, dtype=np.float64)
    hessian = np.array(hessian, dtype=np.float64)
    rows, columns = weight.shape
    for j in range(columns):
        if hessian[j, j] == 0:
            hessian[j, j] = 1
            weight[:, j] = 0
    order = np.arange(columns)
    if act_order:
        order = np.array(sorted(range(columns), key=lambda j: (-hessian[j, j], j)))
    hessian = hessian + damping * np.mean(np.diag(hessian)) * np.eye(columns)
    size = group_size or columns
    moving = size < columns and not static_groups

    levels: dict[int, list[Levels]] = {}

    def find(source: np.ndarray, group: int, among: np.ndarray) -> None:
        if together:
            begin = group // span * span
            members = among[begin * size : (begin + span) * size]
            of_rows = [together(source[row, members]) for row in range(rows)]
            for at in range(len(of_rows[0])):
                levels[begin + at] = [of_row[at] for of_row in of_rows]
            return
        members = among[group * size : (group + 1) * size]
        metric = hessian[np.ix_(members, members)] if weighted else None
        levels[group] = [
            own(source[row, members])
            if own
            else find_levels(source[row, members], bits, symmetric, ternary, mse, dtype, metric)
            for row in range(rows)
        ]

    if not moving:
        for first in range(0, columns, size):
            find(weight, first // size, np.arange(columns))

    current = weight.copy()
    outer = weight.copy()
    codes = np.zeros((rows, columns), dtype=np.int64)
    values = np.zeros((rows, columns))
    group_of = np.zeros(columns, dtype=np.int64)
    for step in range(columns):
        if stale_block and step % stale_block == 0:
            outer = current.copy()
        j, left = order[step], order[step:]
        group = step // size if moving else j // size
        group_of[j] = group
        if group not in levels:
            find(outer if stale_block else current, group, order)
        for row in range(rows):
            codes[row, j] = code_of(current[row, j], levels[group][row])
            values[row, j] = levels[group][row].values[codes[row, j]]
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        error = (current[:, j] - values[:, j]) / inverse[0, 0]
        current[:, left] -= np.outer(error, inverse[0])
    scales = np.array([[levels[g][r].scale for g in sorted(levels)] for r in range(rows)])
    difference = weight - values
    loss = float(np.sum((difference @ hessian) * difference)) / 2
    return Answer(codes, values, scales, group_of, loss)
