"""Tables and plots from records. Heavy libraries (pandas, matplotlib) are imported when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.report.build import build_report
    from harness.report.frame import from_records
    from harness.report.tables import summary_table, summary_tables

__all__ = ["build_report", "from_records", "summary_table", "summary_tables"]

_HOMES = {
    "build_report": "build",
    "from_records": "frame",
    "summary_table": "tables",
    "summary_tables": "tables",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
