"""The choice of candidates, against all choices there are."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.allocate.assign import assign


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[int]], list[list[float]], int]:
    """Bits and costs of up to 5 layers with up to 4 candidates, with many ties, and a budget."""
    layers, candidates = draw(st.integers(1, 5)), draw(st.integers(2, 4))
    sizes = st.lists(st.integers(1, 6), min_size=candidates, max_size=candidates)
    prices = st.lists(st.integers(0, 8), min_size=candidates, max_size=candidates)
    bits = [draw(sizes) for _ in range(layers)]
    costs = [[each / 4 for each in draw(prices)] for _ in range(layers)]
    low, high = sum(map(min, bits)), sum(map(max, bits))
    return bits, costs, draw(st.integers(low, high + 1))


def total(table: list[list[int]] | list[list[float]], choice: tuple[int, ...]) -> float:
    return sum(row[each] for row, each in zip(table, choice, strict=True))


@given(problems())
def test_it_is_the_best_of_all_choices(
    problem: tuple[list[list[int]], list[list[float]], int],
) -> None:
    bits, costs, budget = problem
    every = itertools.product(range(len(bits[0])), repeat=len(bits))
    fitting = [each for each in every if total(bits, each) <= budget]
    found = tuple(assign(bits, costs, budget))
    # Of equal costs fewer bits; of equal bits the earlier candidate of the last layer.
    assert found == min(fitting, key=lambda c: (total(costs, c), total(bits, c), c[::-1]))


def test_a_greedy_choice_is_not_taken() -> None:
    """The best gain for a bit is that of the first layer, whose second candidate blocks both."""
    bits, costs = [[1, 4], [1, 3], [1, 3]], [[9.0, 0.0], [5.0, 0.0], [5.0, 0.0]]
    assert assign(bits, costs, 7) == [0, 1, 1]


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="candidates have 4 bits, and the budget is 3"):
        assign([[2, 3], [2, 3]], [[1.0, 0.0], [1.0, 0.0]], 3)


def test_many_layers_of_few_shapes_take_a_moment() -> None:
    """As many pairs as a model of 32 blocks has: hundreds of thousands at most."""
    shapes = [8192, 1024, 1024, 8192, 28672, 28672, 28672] * 32
    bits = [[each * width * 65 for width in (2, 3, 4, 8)] for each in shapes]
    costs = [[1.0 / (at % 7 + 1) / 4**width for width in (2, 3, 4, 8)] for at in range(224)]
    budget = int(3.25 * 65 * sum(shapes))
    found = assign(bits, costs, budget)
    spent = sum(row[each] for row, each in zip(bits, found, strict=True))
    assert 0 <= budget - spent < 1024 * 65
