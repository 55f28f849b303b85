"""The verb `bitsweep compare A B`: is the difference between two rows real?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.paired import comparison
from harness.paired.comparison import Comparison, same_units
from harness.paired.rows import Named, pairs_of
from harness.report.assemble import columns_in_order
from harness.report.differences import (
    difference_text,
    flips_text,
    number_cells,
    number_columns,
    numbers,
    p_text,
    rule,
)
from harness.report.names import Footnotes
from harness.report.render import to_csv, to_rich
from harness.report.rows import Figure, FigureKey
from harness.report.table import Cell, Column, Note, Table
from harness.run.screen import open_console
from harness.suites.find import declared_tables

OK, FAILED = 0, 1


@dataclass(frozen=True)
class Line:
    """A figure of two rows, compared."""

    first: Named
    second: Named
    key: FigureKey
    unit: str
    result: Comparison


def compare(first: str, second: str, results: Path, form: str = "table") -> int:
    """Compare two rows, or the rows of one name of two folders; print a table, JSON or CSV.

    Returns the exit status: 0; 1 if figures that both rows have could not be compared, which is
    said by name. Raises ConfigError for a row that is not there, and if nothing can be compared.
    """
    pairs = pairs_of(first, second, results)
    found: list[Line] = []
    refused: list[str] = []
    for one, other in pairs:
        made, said = _compared(one, other)
        found += made
        refused += said
    if not found:
        raise ConfigError(_nothing(pairs[0], refused))
    corrected = comparison.adjusted([line.result for line in found])
    lines = [
        Line(line.first, line.second, line.key, line.unit, result)
        for line, result in zip(found, corrected, strict=True)
    ]
    if form == "json":
        found_here = {"comparisons": [_entry(each) for each in lines], "refused": refused}
        print(json.dumps(found_here, indent=1, ensure_ascii=False))
    elif form == "csv":
        print(to_csv(_numbers(lines)), end="")
    else:
        screen = open_console()
        screen.print(to_rich(_table(lines), screen.width))
    for sentence in refused:
        print(f"bitsweep: {sentence}", file=sys.stderr)
    return FAILED if refused else OK


def _nothing(pair: tuple[Named, Named], refused: Sequence[str]) -> str:
    """Why there is nothing to compare."""
    if not refused:
        return (
            f"{pair[0].name} and {pair[1].name} have no perplexity or accuracy in common: measure "
            "both with the same suites."
        )
    more = f" The same goes for {len(refused) - 1} more of their figures." * (len(refused) > 1)
    return f"{refused[0]}{more}"


def _compared(one: Named, other: Named) -> tuple[list[Line], list[str]]:
    """The comparisons of two rows, and a sentence for each figure that cannot be compared."""
    found, refused = [], []
    for key in _keys(one, other):
        mine, theirs = one.row.figures[key], other.row.figures[key]
        reason = _reason(one, other, key, mine, theirs)
        if reason is not None:
            refused.append(reason)
            continue
        (result,) = comparison.compare(mine.items, [theirs.items])
        found.append(Line(one, other, key, mine.unit, result))
    return found, refused


def _keys(one: Named, other: Named) -> list[FigureKey]:
    """Figures of both rows that suites declare as comparable, in the order of tables."""
    rows = [one.row, other.row]
    tables = declared_tables(rows, {})
    shown = [each.key for each in columns_in_order(rows, tables) if tables[each.key[0]].compared]
    # A suite of the user is not at hand here; what it kept values of is meant to be compared.
    shown += [key for key, figure in one.row.figures.items() if figure.items and key not in shown]
    return [key for key in shown if all(key in row.figures for row in rows)]


def _reason(one: Named, other: Named, key: FigureKey, mine: Figure, theirs: Figure) -> str | None:
    """Why a figure cannot be compared, with the next step; None if it can."""
    suite, task, metric = key
    what = f"{metric} of {task}"
    first, second = _told(one, other)
    sizes = f"{_size(mine)} in {first}, {_size(theirs)} in {second}"
    step = f"run both with the same settings of suite.{suite}, so that they are measured alike"
    if mine.items and theirs.items:
        if same_units(mine.items, theirs.items):
            return None
        units = mine.items[0].unit
        return f"{what} is not on the same {units} ({sizes}): {step}."
    if (mine.n, mine.token_hash) != (theirs.n, theirs.token_hash):
        return f"{what} is not on the same text or documents ({sizes}): {step}."
    lacking = [each for each, figure in ((one, mine), (other, theirs)) if not figure.items]
    records = f"record{'s' * (len(lacking) > 1)} of {' and '.join(each.name for each in lacking)}"
    places = " and ".join(dict.fromkeys(f"{each.folder}/cells" for each in lacking))
    return (
        f"{what}: there are no values of single windows or documents in the {records}, because an "
        "earlier version wrote it and the samples file beside it is not here, or because the "
        f"figure is no mean of them: remove {suite}-*.json of the row from {places}, and run its "
        "cell again."
    )


def _size(figure: Figure) -> str:
    """Number of units and the first digits of their hash."""
    if figure.items:
        items = figure.items[0]
        return f"{items.count} with hash {items.ids[:8]}"
    hashed = "" if figure.token_hash is None else f" with hash {figure.token_hash[:8]}"
    return f"{figure.n} {figure.n_unit}{hashed}"


def _table(lines: Sequence[Line]) -> Table:
    footnotes, cells = Footnotes(), []
    for each in lines:
        result, factor = each.result, 100.0 if each.unit == "fraction" else 1.0
        said = [] if result.significant else [f"not significant ({rule(_tested(lines))})"]
        said = said if result.p is not None else [f"a single one of {result.unit}: no test"]
        marks = tuple(footnotes.mark(text) for text in said)
        cells.append(
            [
                *_names(each, lines),
                *_plain(factor * result.reference, factor * result.value),
                Cell(difference_text(result, each.unit), marks=marks),
                Cell(flips_text(result)),
                Cell(p_text(result.p)),
                Cell(p_text(result.adjusted)),
            ]
        )
    columns = [
        *_name_columns(lines),
        Column("first", "A"),
        Column("second", "B"),
        Column("difference", "B - A", "[95 %]"),
        Column("flips", "answers", "lost/gained"),
        Column("p", "p"),
        Column("p_holm", "p", "Holm"),
    ]
    return Table("compare", "", _title(lines), columns, cells, _notes(lines), footnotes.texts)


def _title(lines: Sequence[Line]) -> str:
    """The two rows, with their folders where these differ; of several pairs, the folders."""
    first, second = lines[0].first, lines[0].second
    if _several(lines):
        return f"A: {first.folder}, B: {second.folder}"
    names = _told(first, second)
    return f"A: {names[0]}, B: {names[1]}"


def _told(first: Named, second: Named) -> list[str]:
    """The names of two rows, with their folders where these differ."""
    apart = first.folder != second.folder
    return [f"{each.folder}:{each.name}" if apart else each.name for each in (first, second)]


def _plain(*values: float) -> list[Cell]:
    return [Cell(f"{value:.5g}") for value in values]


def _notes(lines: Sequence[Line]) -> list[Note]:
    units = dict.fromkeys(f"{each.result.count} {each.result.unit}" for each in lines)
    tests = dict.fromkeys(each.result.test for each in lines if each.result.test)
    return [
        Note(
            f"Paired on the same {', '.join(units)}; fractions in %, differences in points, with "
            "the interval of the paired bootstrap. Lost: right in A and wrong in B; gained: the "
            "other way."
        ),
        Note(f"p: {' or '.join(tests)}; Holm: corrected over {_comparisons(_tested(lines))}."),
    ]


def _comparisons(count: int) -> str:
    return f"{count} comparison{'s' * (count != 1)}"


def _tested(lines: Sequence[Line]) -> int:
    return sum(each.result.p is not None for each in lines)


def _several(lines: Sequence[Line]) -> bool:
    return len({(each.first.name, each.second.name) for each in lines}) > 1


def _name_columns(lines: Sequence[Line]) -> list[Column]:
    row = [Column("row", "row", numeric=False)] * _several(lines)
    return [*row, Column("task", "task", numeric=False), Column("figure", "figure", numeric=False)]


def _names(line: Line, lines: Sequence[Line]) -> list[Cell]:
    _, task, metric = line.key
    return [*[Cell(line.first.name)] * _several(lines), Cell(task), Cell(metric)]


def _entry(line: Line) -> dict[str, Any]:
    sides = {}
    for name, side in (("first", line.first), ("second", line.second)):
        sides[name] = {"results": str(side.folder), "row": side.name}
    return {**sides, **numbers(line.key, line.unit, line.result)}


def _numbers(lines: Sequence[Line]) -> Table:
    names = ("first_results", "first", "second_results", "second")
    columns = [*(Column(name, name, numeric=False) for name in names), *number_columns()]
    cells = []
    for each in lines:
        sides = [(str(side.folder), side.name) for side in (each.first, each.second)]
        words = [Cell(text, text) for side in sides for text in side]
        cells.append([*words, *number_cells(numbers(each.key, each.unit, each.result))])
    return Table("compare", "", "Comparison", columns, cells)
