"""Find the tables of suites by their names in records: given, built-in, or generic."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cache

from harness.report.columns import GENERIC, SuiteTable
from harness.report.rows import Row
from harness.suites import quantization_cost
from harness.suites.base import Suite

PACKAGE = "harness.suites"


def declared_tables(rows: Iterable[Row], suites: Mapping[str, Suite]) -> dict[str, SuiteTable]:
    """The tables of all suites in the rows."""
    names = sorted({name for row in rows for name in row.suites})
    return {name: find_table(name, suites) for name in names}


def find_table(name: str, suites: Mapping[str, Suite]) -> SuiteTable:
    """The table of the spec in `suites`, else of the built-in suite, else of all metrics.

    An unknown name is not an error, because the code of a record's suite may be elsewhere.
    """
    if name in suites:
        return suites[name].table
    if name == quantization_cost.STAGE:
        return quantization_cost.TABLE
    suite = _built_in(name)
    return GENERIC if suite is None else suite.table


def is_timing(name: str, suites: Mapping[str, Suite]) -> bool:
    """Whether the figures of a suite belong to the machine; False if its spec is not at hand."""
    suite = suites.get(name) or _built_in(name)
    return suite is not None and suite.timing


@cache
def _built_in(name: str) -> Suite | None:
    """The suite of that name in this package; names with dots are never built in."""
    module = f"{PACKAGE}.{name}"
    if not name.isidentifier() or importlib.util.find_spec(module) is None:
        return None
    suite = getattr(importlib.import_module(module), "SUITE", None)
    return suite if isinstance(suite, Suite) else None
