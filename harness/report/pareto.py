"""Pareto fronts: which rows another row beats in a cost and a quality, and by which; and sizes.

The axes are what suites declare: columns with a `cost`, columns that are compared or a `quality`,
and the memory of serving. Figures count as they are; whether a difference is more than chance is
for harness.report.differences to say.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.report.assemble import columns_in_order
from harness.report.columns import Shown, SuiteTable
from harness.report.names import Footnotes, name_cells, name_columns
from harness.report.rows import Row
from harness.report.serving import Serving
from harness.report.table import Cell, Column, Note, Table, significant

CONTEXT = 4096  # tokens of the sizes in tables, or as many as a model takes
FRONT, ALL = "front", "all"


@dataclass(frozen=True)
class Axis:
    """A figure of rows that is better when it is low, or high.

    name     short, for cells: "MB"; label: in full, "weights in memory, MB".
    percent  the value is a fraction, which plots show in per cent.
    """

    name: str
    label: str
    value: Callable[[Row], float | None]
    higher: bool = False
    percent: bool = False

    def cost(self, row: Row) -> float | None:
        """The value, so that lower is better."""
        value = self.value(row)
        return -value if self.higher and value is not None else value


def serving_in(declared: Mapping[str, SuiteTable], row: Row) -> Serving | None:
    """The memory of a row, by the first suite that knows it."""
    found = (table.serving(row) for table in declared.values())
    return next((each for each in found if each is not None), None)


def context_of(servings: Sequence[Serving | None]) -> int:
    """The context at which sizes are given: of older records, the positions that were timed."""
    known = [each for each in servings if each is not None]
    if any(each.said for each in known):
        return min(each.timed for each in known)
    return min([CONTEXT, *(each.positions for each in known if each.positions)])


def cost_axes(rows: Sequence[Row], declared: Mapping[str, SuiteTable]) -> list[Axis]:
    """The costs that a row has: bits, bytes, memory of serving, and what columns declare."""
    servings = {id(row): serving_in(declared, row) for row in rows}
    context = context_of(list(servings.values()))

    def of_serving(value: Callable[[Serving], float | None]) -> Callable[[Row], float | None]:
        def find(row: Row) -> float | None:
            found = servings[id(row)]
            return None if found is None else value(found)

        return find

    axes = [
        Axis("bits", "bits per weight of the quantized layers", lambda row: row.bits_per_weight),
        Axis("MB", "weights in memory, MB", of_serving(lambda each: each.weights / 1e6)),
        Axis(
            "serving MB",
            f"memory of serving {context} tokens, MB",
            of_serving(lambda each: each.total(context) / 1e6),
        ),
    ]
    for each in columns_in_order(rows, declared):
        if each.declared.cost:
            label = f"{each.column.header} {each.column.detail}".strip()
            axes.append(Axis(each.declared.cost, label, _figure(each)))
    return [axis for axis in axes if any(axis.value(row) is not None for row in rows)]


def quality_columns(rows: Sequence[Row], declared: Mapping[str, SuiteTable]) -> list[Shown]:
    """The columns whose figures say how good a row is."""
    return [
        each
        for each in columns_in_order(rows, declared)
        if (declared[each.key[0]].compared and each.column.on_screen) or each.declared.quality
    ]


def quality_axis(shown: Shown, rows: Sequence[Row]) -> Axis:
    """The axis of a column of figures."""
    column = shown.column
    name = re.sub(r"( [%↑↓])+$", "", f"{column.header} {column.detail}".strip())
    figures = [row.figures[shown.key] for row in rows if shown.key in row.figures]
    higher = any(figure.higher_is_better for figure in figures)
    percent = any(figure.unit == "fraction" for figure in figures)
    return Axis(name, name, _figure(shown), higher, percent)


def _figure(shown: Shown) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        figure = row.figures.get(shown.key)
        return None if figure is None else figure.value

    return value


def dominators(rows: Sequence[Row], cost: Axis, quality: Axis) -> dict[int, int | None]:
    """For every row with both values its index and that of the row that dominates it, or None.

    A row dominates another that it equals or beats in both values and beats in one. Of several,
    the best in quality is named, which is on the front.
    """
    points = {
        index: (x, y)
        for index, row in enumerate(rows)
        if (x := cost.cost(row)) is not None and (y := quality.cost(row)) is not None
    }
    front: list[int] = []
    for index in sorted(points, key=points.__getitem__):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    found: dict[int, int | None] = {}
    costs = [points[each][0] for each in front]
    for index, (x, y) in points.items():
        # The last on the front that costs no more is the best of these.
        best = front[bisect_right(costs, x) - 1]
        found[index] = best if points[best][1] <= y and points[best] != (x, y) else None
    return found


def pareto_table(
    model: str, rows: Sequence[Row], declared: Mapping[str, SuiteTable]
) -> Table | None:
    """Every quality of every row, and the costs in which another row dominates it with it.

    The CSV has a line for every row, cost and quality. None without two rows of a front.
    """
    qualities = quality_columns(rows, declared)
    costs = cost_axes(rows, declared)
    shown = [row for row in rows if any(each.key in row.figures for each in qualities)]
    if len(shown) < 2 or not costs:
        return None
    found = {
        (cost.name, each.key): dominators(shown, cost, quality_axis(each, shown))
        for each in qualities
        for cost in costs
    }
    footnotes, cells, numbered = Footnotes(), [], []
    for index, row in enumerate(shown):
        line = name_cells(row, shown, footnotes)
        plain = [replace(cell, marks=()) for cell in line]
        for each in qualities:
            figure = row.figures.get(each.key)
            places = {
                cost.name: found[cost.name, each.key][index]
                for cost in costs
                if index in found[cost.name, each.key]
            }
            beaten = [name for name, by in places.items() if by is not None]
            line += [
                Cell() if figure is None else each.declared.write(figure),
                Cell() if not places else Cell(_said(beaten, places)),
            ]
            for cost in costs:
                if cost.name in places and figure is not None:
                    by = places[cost.name]
                    numbered.append([*plain, *_numbers(row, cost, each, shown, by)])
        cells.append(line)
    columns = name_columns(shown)
    for each in qualities:
        columns += [
            each.column,
            replace(each.column, name=f"{each.column.name}:dominated", detail="dominated in"),
        ]
    names = "; ".join(f"{cost.name}, {cost.label}" for cost in costs)
    notes = [
        Note(
            "Dominated in: costs for which another row is as good in both cost and figure and "
            f"better in one; {FRONT}: in none of them. Costs: {names}."
        ),
        Note(
            "Rows are ordered by their figures alone: `bitsweep recommend` says where the evidence "
            "does not separate two of them."
        ),
    ]
    title = f"Pareto fronts of {model}"
    exact = Table("pareto", model, title, [*name_columns(shown), *_NUMBER_COLUMNS], numbered)
    texts, causes = footnotes.texts, footnotes.causes
    return Table("pareto", model, title, columns, cells, notes, texts, causes, csv=exact)


_NUMBER_COLUMNS = [
    Column("cost", "cost", numeric=False),
    Column("cost_value", "value"),
    Column("task", "task", numeric=False),
    Column("figure", "figure", numeric=False),
    Column("value", "value"),
    Column("on_front", "on front", numeric=False),
    Column("dominated_by", "dominated by", numeric=False),
]


def _said(beaten: Sequence[str], costs: Mapping[str, int | None]) -> str:
    """The costs in which a row is dominated, in a cell."""
    every = len(beaten) == len(costs) > 1
    return ALL if every else ", ".join(beaten) or FRONT


def _numbers(row: Row, cost: Axis, shown: Shown, rows: Sequence[Row], by: int | None) -> list[Cell]:
    other = "" if by is None else f"{rows[by].name} {rows[by].scheme_label}"
    _, task, metric = shown.key
    return [
        Cell(value=cost.name),
        Cell(value=cost.value(row)),
        Cell(value=task),
        Cell(value=metric),
        Cell(value=row.figures[shown.key].value),
        Cell(value=str(by is None)),
        Cell(value=other),
    ]


def size_table(model: str, rows: Sequence[Row], declared: Mapping[str, SuiteTable]) -> Table | None:
    """Bits per weight of the whole model, its bytes, and the memory of serving; None if unknown."""
    servings = [serving_in(declared, row) for row in rows]
    known = [(row, each) for row, each in zip(rows, servings, strict=True) if each is not None]
    if not known:
        return None
    context = context_of(servings)
    shown = [row for row, _ in known]
    footnotes, cells = Footnotes(), []
    for row, each in known:
        bits = each.bits_per_weight
        said = tuple(footnotes.mark(text) for text in [each.said] if text)
        cells.append(
            [
                *name_cells(row, shown, footnotes),
                Cell() if bits is None else Cell(f"{bits:.2f}", bits),
                _megabytes(each.weights),
                _megabytes(each.cache_at(context), said),
                Cell(marks=said) if said else _megabytes(each.workspace),
                _megabytes(each.total(context), said),
            ]
        )
    at = f"MB at {context}"
    columns = [
        *name_columns(shown),
        Column("model_bits_per_weight", "bits/weight", "whole model"),
        Column("weight_bytes", "weights", "MB"),
        Column("cache_bytes", "KV cache", at),
        Column("workspace_bytes", "workspace", "MB"),
        Column("serving_bytes", "serving", at),
    ]
    reads = sorted({each.workspace_at for _, each in known})
    notes = [
        Note(
            "Bits/weight: of the quantized layers, with scales, zero-points and padding; of the "
            "whole model, everything in memory (embeddings, head, norms) over all of its weights."
        ),
        Note(
            f"Serving: one sequence of {context} tokens; weights, KV cache in the model's own "
            "heads, layers, windows and dtype, and the workspace of reading a prompt in pieces of "
            f"{' or '.join(map(str, reads))} tokens."
        ),
    ]
    title = f"Size and serving memory of {model}"
    texts, causes = footnotes.texts, footnotes.causes
    return Table("size", model, title, columns, cells, notes, texts, causes)


def _megabytes(value: float, marks: tuple[int, ...] = ()) -> Cell:
    return Cell(significant(value / 1e6), value, marks=marks)
