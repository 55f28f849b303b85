"""An earlier report in the same folder: its records, a note on its cells, removal of its files."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from harness.errors import StoreError
from harness.records.absent import absent_beside
from harness.records.record import Record
from harness.records.store import KEY_DIGITS, read_record, record_files

MOST_NAMED = 4
ALL, JOINED = "all", "joined"  # reports of `bitsweep report`, which belong to no experiment
REST = "results"  # the experiment of records in no report
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
    gone = {row.cell_key: row.name for row in _held(folder) or () if row.cell_key not in coming}
    if not gone:
        return None
    names = list(dict.fromkeys(gone.values()))
    named = ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED)
    cells = "1 cell" if len(gone) == 1 else f"{len(gone)} cells"
    return (
        f"It replaced a report with {cells} that this one does not show ({named}): reports "
        "beside each other need folders of their own, --out FOLDER or name=NAME."
    )


def of_earlier(
    results: Path, folder: Path, records: Sequence[Record]
) -> tuple[list[Record], list[str]]:
    """The records that the report in `folder` was made of and that are not in `records`.

    results  the results folder that has them.

    Also sentences: on how many cells they are, and on files that are no records any more.
    """
    coming = {record.key for record in records}
    held = _held(folder)
    if held is None:
        return [], [
            f"{folder / 'metrics.csv'} cannot be read, so rows of earlier runs of this name are "
            f"not in the report; `bitsweep report {shlex.quote(str(results))}` shows all records."
        ]
    wanted = {row.key for row in held if row.key} - coming
    ends = {row.cell_key[:KEY_DIGITS] for row in held if row.key in wanted}
    found, said = [], []
    for path in record_files(results):
        if path.parent.name[-KEY_DIGITS:] in ends:
            try:
                found.append(read_record(path))
            except StoreError as error:
                said.append(f"left out of the report: {error}")
    found = [record for record in found if record.key in wanted]
    absent = {row.cell_key for row in held if not row.key}
    beside = absent_beside(results, [*records, *found])
    known = {record.cell_key for record in records}
    found += [each for each in beside if each.cell_key in absent - known]
    others = len({record.cell_key for record in found} - known)
    if others:
        cells = "1 cell" if others == 1 else f"{others} cells"
        said.append(
            f"The report shows {cells} of earlier runs of this name too; name=NAME makes a "
            "separate one."
        )
    return found, said


def experiments(results: Path, records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the name of the experiment whose report shows their cell; REST where none does.

    Where several do, that of the newest report.
    """
    names: dict[str, str] = {}
    reports = (results / "reports").glob("*/metrics.csv")
    for file in sorted(reports, key=lambda each: (each.stat().st_mtime_ns, each.parent.name)):
        if file.parent.name in (ALL, JOINED):
            continue
        title = _title(file.with_name("summary.md")) or file.parent.name
        names |= {row.cell_key: title for row in _held(file.parent) or ()}
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(names.get(record.cell_key, REST), []).append(record)
    return dict(sorted(found.items()))


def _title(summary: Path) -> str:
    try:
        first = summary.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        return ""
    return first.removeprefix("# ").strip()


def remove_others(folder: Path, files: Sequence[Path]) -> None:
    """Remove the tables and plots of an earlier report in `folder`, except the new `files`.

    Only for a folder that is for reports alone.
    """
    written = {file.resolve() for file in files}
    for pattern in WRITTEN:
        for file in folder.glob(pattern):
            if file.resolve() not in written:
                file.unlink(missing_ok=True)


class _Held(NamedTuple):
    """What a report says of a record: its key ("" of what could not be had), its cell and name."""

    key: str
    cell_key: str
    name: str


def _held(folder: Path) -> list[_Held] | None:
    """The records of a folder's report; empty without one, None if it cannot be read."""
    file = folder / "metrics.csv"
    if not file.is_file():
        return []
    names = ("key", "cell_key", "model", "method", "scheme", "seed")
    found: dict[tuple[str, ...], None] = {}  # every figure is a line, so most lines say the same
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            head = next(reader, [])
            which = itemgetter(*map(head.index, names))
            for line in reader:
                if line:
                    found[which(line)] = None
    except (OSError, ValueError, IndexError, csv.Error):
        return None
    return [
        _Held(key, cell_key, f"{model}-{method}-{scheme}-s{seed}")
        for key, cell_key, model, method, scheme, seed in found
    ]
