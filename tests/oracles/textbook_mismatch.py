"""GPTAQ, Qronos and GPFQ as their papers state them, one row at a time in float64.

Every step is the least-squares problem itself, on the inputs and not on products of them, solved by
numpy.linalg.lstsq; every level is found by trying all of them. No Hessian, no factor, no blocks.
Damping is data: both kinds of inputs get one more token for each input, which has the root of the
damping at that input and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# levels of some adjacent weights of one row -> all values that they may take
Find = Callable[[np.ndarray], np.ndarray]


def damped(inputs: np.ndarray, damping: float) -> np.ndarray:
    """Inputs [tokens, in] with the tokens that stand for the damping (absolute)."""
    return np.vstack([inputs, np.sqrt(damping) * np.eye(inputs.shape[1])])


def least_squares(inputs: np.ndarray, target: np.ndarray) -> np.ndarray:
    """argmin_v || target - inputs v ||."""
    if not inputs.shape[1]:
        return np.zeros(0)
    return np.linalg.lstsq(inputs, target, rcond=None)[0]


def best_level(levels: np.ndarray, column: np.ndarray, target: np.ndarray) -> float:
    """The level q with the smallest || target - q column ||, by trying all."""
    return levels[np.argmin([np.linalg.norm(target - q * column) for q in levels])]


def qronos(
    row: np.ndarray, full: np.ndarray, quantized: np.ndarray, find: Find, size: int
) -> np.ndarray:
    """The levels of one row; inputs [tokens, in] in full precision and in the quantized model.

    The grid of a group is found from the best weights beside what is rounded before it.
    """
    target = full @ row
    count = len(row)
    rounded = np.zeros(count)
    best = least_squares(quantized, target)
    others = row.copy()  # what the later columns are while one is rounded
    levels = np.zeros(0)
    for t in range(count):
        if t % size == 0:
            levels = find(best[:size])
        left = target - quantized[:, :t] @ rounded[:t] - quantized[:, t + 1 :] @ others[1:]
        rounded[t] = best_level(levels, quantized[:, t], left)
        rest = target - quantized[:, : t + 1] @ rounded[: t + 1]
        best = others = least_squares(quantized[:, t + 1 :], rest)
    return rounded


def gptaq(
    row: np.ndarray, full: np.ndarray, quantized: np.ndarray, find: Find, size: int, alpha: float
) -> np.ndarray:
    """The levels of one row; as `qronos`.

    The grid of a group is found from the weights that its columns would have at their turn if
    nothing more were rounded.
    """
    count = len(row)
    rounded = np.zeros(count)

    def passed(t: int, left: np.ndarray, value: float) -> np.ndarray:
        """The columns after t once column t, worth left[0], is given `value`."""
        apart = (left[0] - value) * quantized[:, t]
        apart = apart + alpha * row[t] * (full[:, t] - quantized[:, t])
        return left[1:] + least_squares(quantized[:, t + 1 :], apart)

    left = row.copy()
    levels = np.zeros(0)
    for t in range(count):
        if t % size == 0:
            ahead, turns = left, []
            for later in range(t, min(t + size, count)):
                turns.append(ahead[0])
                ahead = passed(later, ahead, ahead[0])
            levels = find(np.array(turns))
        rounded[t] = levels[np.argmin(np.abs(levels - left[0]))]
        left = passed(t, left, rounded[t])
    return rounded


def gpfq(
    row: np.ndarray, full: np.ndarray, quantized: np.ndarray, find: Find, size: int
) -> np.ndarray:
    """The levels of one row: greedy path following, each beside what the columns so far should add.

    The grid of a group is that of its own weights.
    """
    rounded = np.zeros(len(row))
    error = np.zeros(len(full))
    levels = np.zeros(0)
    for t in range(len(row)):
        if t % size == 0:
            levels = find(row[t : t + size])
        wanted = error + row[t] * full[:, t]
        rounded[t] = best_level(levels, quantized[:, t], wanted)
        error = wanted - rounded[t] * quantized[:, t]
    return rounded
