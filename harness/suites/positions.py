"""Intervals of positions in the context, for figures against the position."""

BY_POSITION = "nll_by_position"  # the metric: mean negative log-likelihood of an interval
FIRST = 16


def position_edges(length: int) -> list[int]:
    """Edges of the intervals in windows of at most `length` tokens: 1, 16, 32, 64, ..., length.

    A position is the number of tokens that a prediction sees: from 1 to length - 1.
    """
    found, edge = [1], FIRST
    while edge < length:
        found.append(edge)
        edge *= 2
    return [*found, max(length, 2)]
