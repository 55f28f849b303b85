"""The tables of suites by the names that records bear: of a spec at hand, built in, or generic."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping

from harness.report.columns import GENERIC, SuiteTable
from harness.report.rows import Row
from harness.suites import quantization_cost
from harness.suites.base import Suite

PACKAGE = "harness.suites"


def declared_tables(rows: Iterable[Row], suites: Mapping[str, Suite]) -> dict[str, SuiteTable]:
    """What every suite of the rows adds to reports."""
    names = sorted({name for row in rows for name in row.suites})
    return {name: find_table(name, suites) for name in names}


def find_table(name: str, suites: Mapping[str, Suite]) -> SuiteTable:
    """The table of the spec in `suites`, else of the built-in suite; else one of all its metrics.

    A record may be of a suite whose code is elsewhere, so an unknown name is no error.
    """
    if name in suites:
        return suites[name].table
    if name == quantization_cost.STAGE:
        return quantization_cost.TABLE
    suite = _built_in(name)
    return GENERIC if suite is None else suite.table


def _built_in(name: str) -> Suite | None:
    """The suite of that name in this package; only a name without dots is looked for."""
    module = f"{PACKAGE}.{name}"
    if not name.isidentifier() or importlib.util.find_spec(module) is None:
        return None
    suite = getattr(importlib.import_module(module), "SUITE", None)
    return suite if isinstance(suite, Suite) else None
