"""Differences of quantized rows from full precision: tests, the marks they make, and their table.

Only figures of columns that suites declare as compared, and whose records hold the values of single
windows or documents (record.Items). Full precision is the row of the same model and dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from harness.paired.comparison import Comparison, adjusted, compare, same_units
from harness.paired.exact import ALPHA
from harness.report.columns import Place, Shown
from harness.report.names import Footnotes, name_cells, name_columns
from harness.report.rows import FigureKey, Row
from harness.report.table import Cell, Column, Note, Table, decimals_for

SUFFIX = "differences"
SMALLEST_P = 1e-4  # printed below it as "<0.0001"


@dataclass(frozen=True)
class Differences:
    """Comparisons with full precision by (index of the row, figure), adjusted over all of them.

    references  the index of the row in full precision, of each.
    elsewhere   figures on other windows or documents than those of full precision.
    untested    number of figures that could be compared but for the values of single units.
    """

    found: Mapping[tuple[int, FigureKey], Comparison] = field(default_factory=dict)
    references: Mapping[tuple[int, FigureKey], int] = field(default_factory=dict)
    elsewhere: frozenset[tuple[int, FigureKey]] = frozenset()
    untested: int = 0

    def footnotes(self, index: int, key: FigureKey) -> list[str]:
        """What is to be said of a row's figure."""
        if (index, key) in self.elsewhere:
            return ["not on the windows or documents of full precision: not compared with it"]
        comparison = self.found.get((index, key))
        if comparison is None or comparison.significant:
            return []
        if comparison.p is None:
            return [f"a single one of {comparison.unit}: no test against full precision"]
        return [f"not significantly different from full precision ({rule(self.tested)})"]

    @cached_property
    def tested(self) -> int:
        """The number of comparisons that Holm's correction counts."""
        return sum(each.p is not None for each in self.found.values())

    def notes(self) -> list[Note]:
        """A note on what could not be tested, where something could have been."""
        if not self.untested:
            return []
        which = "These figures are"
        if self.found:
            which = f"{self.untested} of these figures {'is' if self.untested == 1 else 'are'}"
        return [
            Note(
                f"{which} not tested for a difference from full precision: the records hold no "
                "values of single windows or documents."
            )
        ]


def rule(comparisons: int) -> str:
    """The rule by which a difference is called significant, in words."""
    family = f" after Holm's correction over {comparisons} comparisons" * (comparisons > 1)
    return f"p ≥ {ALPHA:g}{family}"


def find_differences(rows: Sequence[Row], keys: Sequence[FigureKey]) -> Differences:
    """Compare every quantized row with full precision in every figure of `keys`."""
    full = [index for index, row in enumerate(rows) if row.full_precision]
    found: dict[tuple[int, FigureKey], Comparison] = {}
    references: dict[tuple[int, FigureKey], int] = {}
    elsewhere: set[tuple[int, FigureKey]] = set()
    untested = 0
    for key in dict.fromkeys(keys):
        chosen: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            reference = None if row.full_precision else reference_of(row, rows, full, key)
            if reference is None or key not in row.figures:
                continue
            mine, theirs = row.figures[key], rows[reference].figures[key]
            if not mine.items or not theirs.items:
                untested += (mine.n, mine.token_hash) == (theirs.n, theirs.token_hash)
            elif same_units(theirs.items, mine.items):
                chosen.setdefault(reference, []).append(index)
            else:
                elsewhere.add((index, key))
        for reference, indices in chosen.items():
            others = [rows[index].figures[key].items for index in indices]
            made = compare(rows[reference].figures[key].items, others)
            found |= {(index, key): each for index, each in zip(indices, made, strict=True)}
            references |= {(index, key): reference for index in indices}
    corrected = dict(zip(found, adjusted(list(found.values())), strict=True))
    return Differences(corrected, references, frozenset(elsewhere), untested)


def reference_of(row: Row, rows: Sequence[Row], full: Sequence[int], key: FigureKey) -> int | None:
    """The row in full precision with the figure, of the same dtype or the only one; else None."""
    found = [i for i in full if rows[i].model == row.model and key in rows[i].figures]
    found = [i for i in found if rows[i].dtype == row.dtype] or found
    return found[0] if len(found) == 1 else None


def difference_table(
    place: Place, model: str, rows: Sequence[Row], shown: Sequence[Shown], found: Differences
) -> Table | None:
    """The table of all comparisons, a line a row; its CSV has a line a comparison."""
    keys = {key for _, key in found.found}
    flipping = {key for (_, key), each in found.found.items() if each.lost is not None}
    fractions = {key for index, key in found.found if rows[index].figures[key].unit == "fraction"}
    columns = [each for each in shown if each.key in keys]
    lines = sorted({index for index, _ in found.found})
    if not lines:
        return None
    named, footnotes = [rows[index] for index in lines], Footnotes()
    cells, numbered = [], []
    for index in lines:
        head = name_cells(rows[index], named, footnotes)
        plain = [replace(cell, marks=()) for cell in head]
        line = list(head)
        for each in columns:
            comparison = found.found.get((index, each.key))
            marks = tuple(footnotes.mark(text) for text in found.footnotes(index, each.key))
            if comparison is None:
                line += [Cell(marks=marks), *[Cell()] * (each.key in flipping)]
                continue
            unit = rows[index].figures[each.key].unit
            line.append(Cell(difference_text(comparison, unit), marks=marks))
            line += [Cell(flips_text(comparison))] * (each.key in flipping)
            numbered.append([*plain, *number_cells(numbers(each.key, unit, comparison))])
        cells.append(line)
    heads = name_columns(named)
    for each in columns:
        column = each.column
        points = ", points" * (each.key in fractions)
        change = f"Δ {each.declared.detail or each.key[2]}{points}"
        heads.append(replace(column, name=f"{column.name}:difference", detail=change))
        if each.key in flipping:
            heads.append(replace(column, name=f"{column.name}:flips", detail="lost/gained"))
    name, title = f"{place.name}_{SUFFIX}", f"Differences from full precision of {model}"
    exact = Table(name, model, title, [*name_columns(named), *number_columns()], numbered)
    texts, causes = footnotes.texts, footnotes.causes
    return Table(name, model, title, heads, cells, _notes(found), texts, causes, csv=exact)


def _notes(found: Differences) -> list[Note]:
    units: dict[str, None] = {}
    for each in found.found.values():
        units.setdefault(f"{each.count} {each.unit}")
    return [
        Note(
            f"Paired on the same {', '.join(units)}: difference [95 % interval of the paired "
            "bootstrap over them, of one comparison]. Lost: right in full precision and wrong "
            "here; gained: the other way."
        ),
        Note(
            "Tests: exact McNemar of accuracies, paired t otherwise, corrected by Holm's method "
            f"over the {found.tested} comparisons of this table."
        ),
        *found.notes(),
    ]


def difference_text(comparison: Comparison, unit: str) -> str:
    """ "-1.2 [-3.0, +0.6]", fractions in points, to two digits of half the interval."""
    factor, least = (100.0, 1) if unit == "fraction" else (1.0, 2)
    values = [factor * v for v in (comparison.difference, comparison.low, comparison.high)]
    if max(map(abs, values)) >= 1e5:
        value, low, high = (f"{each:+.1e}" for each in values)
    else:
        decimals = min(decimals_for((values[2] - values[1]) / 2, least), 6)
        value, low, high = (f"{each + 0.0:+.{decimals}f}" for each in values)
    return f"{value} [{low}, {high}]"


def flips_text(comparison: Comparison) -> str:
    """ "5/2": units lost and gained; means over seeds with a decimal."""
    if comparison.lost is None or comparison.gained is None:
        return "–"
    counts = (comparison.lost, comparison.gained)
    digits = 0 if all(count == round(count) for count in counts) else 1
    return "/".join(f"{count:.{digits}f}" for count in counts)


def p_text(value: float | None) -> str:
    """ "0.031", "<0.0001"; "–" without a test."""
    if value is None:
        return "–"
    return f"<{SMALLEST_P:.4f}" if value < SMALLEST_P else f"{value:.2g}"


def numbers(
    key: FigureKey, unit: str, comparison: Comparison
) -> dict[str, float | int | str | bool | None]:
    """All numbers of a comparison by name, in the unit of the figure."""
    suite, task, metric = key
    return {
        "suite": suite,
        "task": task,
        "figure": metric,
        "unit": unit,
        "reference": comparison.reference,
        "value": comparison.value,
        "difference": comparison.difference,
        "low": comparison.low,
        "high": comparison.high,
        "n": comparison.count,
        "paired_on": comparison.unit,
        "lost": comparison.lost,
        "gained": comparison.gained,
        "test": comparison.test,
        "p": comparison.p,
        "p_holm": comparison.adjusted,
        "significant": comparison.significant,
    }


def number_columns() -> list[Column]:
    """The columns of `number_cells`, of whatever comparison."""
    words = ("suite", "task", "figure", "unit", "paired_on", "test", "significant")
    names = (
        *("suite", "task", "figure", "unit", "reference", "value", "difference", "low", "high"),
        *("n", "paired_on", "lost", "gained", "test", "p", "p_holm", "significant"),
    )
    return [Column(name, name, numeric=name not in words) for name in names]


def number_cells(found: Mapping[str, float | int | str | bool | None]) -> list[Cell]:
    """The values of `numbers` for a CSV."""
    return [
        Cell(value=value if value is None or isinstance(value, float) else str(value))
        for value in found.values()
    ]
