"""Comparisons of pairs of cells for the page, as `bitsweep compare A B` makes them of one pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations, groupby, islice
from typing import Any

from harness.paired.comparison import (
    Comparison,
    adjusted_values,
    compare_pairs,
    is_significant,
)
from harness.report.differences import difference_text, flips_text, p_text
from harness.report.rows import FigureKey, Row

MOST = 4000  # comparisons in a page: all pairs of about 50 cells with three figures

Pair = tuple[int, int]
# Comparisons that tables have made: index of the reference, of the other row, and the figure.
Known = Mapping[tuple[int, int, FigureKey], Comparison]
Rule = Callable[[Sequence[Row], Sequence[int]], Iterator[Pair]]


def _all(_rows: Sequence[Row], mine: Sequence[int]) -> Iterator[Pair]:
    return combinations(mine, 2)


def _of_one_width(rows: Sequence[Row], mine: Sequence[int]) -> Iterator[Pair]:
    for i, j in combinations(mine, 2):
        one, other = rows[i], rows[j]
        if one.bits == other.bits or one.full_precision or other.full_precision:
            yield i, j


def _with_full_precision(rows: Sequence[Row], mine: Sequence[int]) -> Iterator[Pair]:
    full = [index for index in mine if rows[index].full_precision]
    found = {(min(i, j), max(i, j)) for i in full for j in mine if i != j}
    return iter(sorted(found))


def _with_first_full_precision(rows: Sequence[Row], mine: Sequence[int]) -> Iterator[Pair]:
    for first in [index for index in mine if rows[index].full_precision][:1]:
        yield from ((min(first, other), max(first, other)) for other in mine if other != first)


# Which pairs are compared where all would be too many: the first rule that fits, else the last. A
# rule gives the pairs among the rows of one model, whose indices ascend.
RULES: tuple[tuple[str, Rule], ...] = (
    ("all pairs of one model", _all),
    ("pairs of one bit width, and all with full precision", _of_one_width),
    ("pairs with full precision", _with_full_precision),
    ("each cell with the first of its model in full precision", _with_first_full_precision),
)


def compared_pairs(
    rows: Sequence[Row], columns: Mapping[str, FigureKey], known: Known
) -> dict[str, Any]:
    """Which pairs were compared, and the comparisons by "I,J", the indices of two rows.

    rows     in the order of make_rows, those of one model one after the other.
    columns  figures that suites declare as comparable, by name of their column.
    known    is not computed again.

    A comparison is [name of the column, difference J - I with its interval, lost/gained, p, p by
    Holm's method over the figures of the pair, is significant].
    """
    said, pairs = _chosen(rows, _by_units(rows, columns))
    found: dict[tuple[int, int], list[tuple[str, Comparison]]] = {}
    for (name, _), chosen in pairs.items():
        key = columns[name]
        made = {pair: known[*pair, key] for pair in chosen if (*pair, key) in known}
        made |= _compared(rows, key, [pair for pair in chosen if pair not in made])
        for pair in chosen:
            found.setdefault(pair, []).append((name, made[pair]))
    return {
        "rule": said,
        "pairs": {f"{i},{j}": _said(each, rows[i], columns) for (i, j), each in found.items()},
    }


def _compared(rows: Sequence[Row], key: FigureKey, pairs: Sequence[Pair]) -> dict[Pair, Comparison]:
    if not pairs:
        return {}
    asked = sorted({index for pair in pairs for index in pair})
    place = {index: at for at, index in enumerate(asked)}
    items = [rows[index].figures[key].items for index in asked]
    made = compare_pairs(items, [(place[i], place[j]) for i, j in pairs])
    return {(i, j): made[place[i], place[j]] for i, j in pairs}


def _chosen(
    rows: Sequence[Row], units: Mapping[tuple[str, str], list[int]]
) -> tuple[str, dict[tuple[str, str], list[Pair]]]:
    """The first rule whose comparisons are at most MOST, or the last one, and its pairs."""
    by_model = {
        group: [list(mine) for _, mine in groupby(indices, key=lambda index: rows[index].model)]
        for group, indices in units.items()
    }

    def fits(rule: Rule) -> bool:
        found = (rule(rows, mine) for models in by_model.values() for mine in models)
        return sum(1 for _ in islice(chain.from_iterable(found), MOST + 1)) <= MOST

    said, rule = next((each for each in RULES if fits(each[1])), RULES[-1])
    return said, {
        group: [pair for mine in models for pair in rule(rows, mine)]
        for group, models in by_model.items()
    }


def _by_units(
    rows: Sequence[Row], columns: Mapping[str, FigureKey]
) -> dict[tuple[str, str], list[int]]:
    """Indices of the rows whose figure is on the same windows or documents, in table order."""
    found: dict[tuple[str, str], list[int]] = {}
    for name, key in columns.items():
        for index, row in enumerate(rows):
            items = row.figures[key].items if key in row.figures else ()
            if items:
                first = items[0]
                found.setdefault((name, f"{first.ids} {first.count} {first.unit}"), []).append(
                    index
                )
    return found


def _said(
    made: Sequence[tuple[str, Comparison]], row: Row, columns: Mapping[str, FigureKey]
) -> list[list[Any]]:
    corrected = adjusted_values([each.p for _, each in made])
    return [
        [
            name,
            difference_text(each, row.figures[columns[name]].unit),
            flips_text(each),
            p_text(each.p),
            p_text(value),
            int(is_significant(value)),
        ]
        for (name, each), value in zip(made, corrected, strict=True)
    ]
