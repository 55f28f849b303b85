"""What a report's folder holds already: a report of the same name takes its place, and says so."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from harness.records.record import Record

MOST_NAMED = 4
WRITTEN = ("tables/*.csv", "tables/*.tex", "plots/*.png", "plots/*.svg")


def said_of_replaced(records: Sequence[Record], folder: Path) -> str | None:
    """One sentence on the cells of the report in `folder` that one of `records` will not show.

    None where it shows them all, or where there is no report yet.
    """
    coming = {record.cell_key for record in records}
    gone = {key: name for key, name in _held(folder).items() if key not in coming}
    if not gone:
        return None
    names = list(dict.fromkeys(gone.values()))
    named = ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED)
    cells = "1 cell" if len(gone) == 1 else f"{len(gone)} cells"
    return (
        f"It took the place of a report of the same name with {cells} that this one does not show "
        f"({named}): their records are kept; add name=NAME for a report of its own."
    )


def remove_others(folder: Path, files: Sequence[Path]) -> None:
    """Remove the tables and plots of the report that `files` took the place of in `folder`.

    Only for a folder that belongs to reports: they would stand, or be logged, beside the new ones.
    """
    written = {file.resolve() for file in files}
    for pattern in WRITTEN:
        for file in folder.glob(pattern):
            if file.resolve() not in written:
                file.unlink(missing_ok=True)


def _held(folder: Path) -> dict[str, str]:
    """Names by key of the cells in a folder's report; empty where none can be read."""
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return {
                row["cell_key"]: f"{row['model']}-{row['method']}-{row['scheme']}-s{row['seed']}"
                for row in csv.DictReader(file)
            }
    except (OSError, ValueError, KeyError, csv.Error):
        return {}
