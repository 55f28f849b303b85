"""Which rows a plot tells apart where there are more than a reader can.

Those on the most Pareto fronts come first, over all costs and qualities of a model's rows; rows of
one count keep the order of tables. Whatever is left out stands in the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from harness.report.columns import SuiteTable
from harness.report.pareto import cost_axes, dominators, quality_axis, quality_columns
from harness.report.rows import Row

MOST_METHODS = 16  # with a colour and an entry in the legend
MOST_LINES = 24  # of rows in one panel
MOST_ROWS = 40  # of a plot with a line of text a row
MOST_PANELS = 12


class Leading:
    """The rows of one model with the tables of its suites, and which of them lead.

    Rows are ranked once, when a plot first asks: of a thousand rows that takes half a second.
    """

    def __init__(self, rows: Sequence[Row], declared: Mapping[str, SuiteTable]) -> None:
        self.rows, self.declared = list(rows), declared

    @cached_property
    def ranked(self) -> list[Row]:
        """Full precision, then the rows on the most fronts."""
        rows = self.rows
        fronts = dict.fromkeys(range(len(rows)), 0)
        costs = cost_axes(rows, self.declared)
        for column in quality_columns(rows, self.declared):
            quality = quality_axis(column, rows)
            for cost in costs:
                for index, by in dominators(rows, cost, quality).items():
                    fronts[index] += by is None
        order = sorted(fronts, key=lambda index: (not rows[index].full_precision, -fronts[index]))
        return [rows[index] for index in order]

    def rows_of(self, rows: Sequence[Row], most: int) -> list[Row]:
        """At most `most` of the rows of a plot, in their order."""
        if len(rows) <= most:
            return list(rows)
        wanted = set(rows)
        first = set([row for row in self.ranked if row in wanted][:most])
        return [row for row in rows if row in first]

    def methods(self, most: int = MOST_METHODS) -> list[Row]:
        """The rows of at most `most` methods, and of full precision, in the order of tables."""
        names = {row.name for row in self.rows if not row.full_precision}
        if len(names) <= most:
            return list(self.rows)
        order = dict.fromkeys(row.name for row in self.ranked if not row.full_precision)
        first = set(list(order)[:most])
        return [row for row in self.rows if row.full_precision or row.name in first]


def some_of(shown: int, every: int, what: str) -> str:
    """What the title of a plot says of what it leaves out; "" where that is nothing."""
    return f": {shown} of {every} {what}, Pareto fronts first" * (shown < every)
