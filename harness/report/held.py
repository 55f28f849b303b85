"""An earlier report in the same folder: a note on its cells, and removal of its files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from harness.records.record import Record

MOST_NAMED = 4
WRITTEN = (
    "tables/*.csv",
    "tables/*.tex",
    "plots/*.pdf",
    "plots/*.png",
    "plots/*.svg",
    "interchange/**/*.json",
    "interchange/**/*.yaml",
)


def said_of_replaced(records: Sequence[Record], folder: Path) -> str | None:
    """A sentence on cells of the earlier report in `folder` that are not in `records`.

    None if there are none, or no earlier report.
    """
    coming = {record.cell_key for record in records}
    gone = {key: name for key, name in _held(folder).items() if key not in coming}
    if not gone:
        return None
    names = list(dict.fromkeys(gone.values()))
    named = ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED)
    cells = "1 cell" if len(gone) == 1 else f"{len(gone)} cells"
    return (
        f"It replaced a report of the same name with {cells} that this one does not show "
        f"({named}): their records are kept; add name=NAME for a separate report."
    )


def remove_others(folder: Path, files: Sequence[Path]) -> None:
    """Remove the tables and plots of an earlier report in `folder`, except the new `files`.

    Only for a folder that is for reports alone.
    """
    written = {file.resolve() for file in files}
    for pattern in WRITTEN:
        for file in folder.glob(pattern):
            if file.resolve() not in written:
                file.unlink(missing_ok=True)


def _held(folder: Path) -> dict[str, str]:
    """Names of the cells in a folder's report by key; empty if none can be read."""
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return {
                row["cell_key"]: f"{row['model']}-{row['method']}-{row['scheme']}-s{row['seed']}"
                for row in csv.DictReader(file)
            }
    except (OSError, ValueError, KeyError, csv.Error):
        return {}
