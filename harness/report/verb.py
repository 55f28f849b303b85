"""The verb `bitsweep report RESULTS...`: tables, plots and page again, from records alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness.cell.parts import suites_in
from harness.errors import ConfigError
from harness.records.absent import absent_beside
from harness.records.asked import require_folder, say
from harness.records.record import Record
from harness.records.store import (
    KEY_DIGITS,
    cell_name,
    require_place,
    scan_records,
    write_each,
)
from harness.report.collection import uncollected
from harness.report.held import ALL, JOINED
from harness.report.interchange import interchange_files
from harness.report.latex import Latex
from harness.run import launch


@dataclass(frozen=True)
class Request:
    """What the command line asks for; harness.arguments describes each."""

    results: list[Path]
    out: Path | None
    title: str
    config_dir: Path | None
    caption: list[str]
    label: list[str]
    text_width: float
    wide: str
    interchange: bool


def report(request: Request) -> int:
    """Write the report of one folder or several, print its tables; return the exit status 0.

    Raises ConfigError before anything is written if there is no record, the folder of the report
    cannot be written, or an option names no table.
    """
    latex = Latex(
        captions=_named("--caption", request.caption),
        labels=_named("--label", request.label),
        width=request.text_width,
        wide=request.wide,
    )
    records = joined(request.results)
    name = ALL if len(request.results) == 1 else JOINED
    folder = request.out or request.results[0] / "reports" / name
    try:
        require_place(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: name another folder for the report with --out FOLDER."
        ) from error
    suites = suites_in(request.config_dir)
    own = request.out is None
    launch.report(records, folder, request.title, suites, own_folder=own, latex=latex)
    if request.interchange:
        files, said = interchange_files(records, suites)
        write_each({folder / name: data for name, data in files.items()})
        print(f"interchange: {len(files)} files in {folder / 'interchange'}")
        for sentence in said:
            print(sentence)
    return 0


def joined(folders: Sequence[Path]) -> list[Record]:
    """The records of results folders, in an order that does not depend on that of the folders.

    A record that several folders hold counts once. What a user must know is said on standard
    error: files that are no records, records of one key that differ, dates that are still to come.
    Raises ConfigError for a folder without any record.
    """
    with uncollected():
        return _joined(folders)


def _joined(folders: Sequence[Path]) -> list[Record]:
    found: dict[tuple[str, str], list[Record]] = {}
    for folder in folders:
        records, notes = scan_records(folder)
        absent = absent_beside(folder, records)
        if not records and not absent:
            require_folder(folder)
            say(notes)
            raise ConfigError(
                f"{folder} holds no records: make some with `bitsweep run`, or name the "
                "results folder of a run, as in `bitsweep report my/results`."
            )
        say(notes)
        for record in [*records, *absent]:
            found.setdefault((record.started_at, record.key), []).append(record)
    every = [record for made in sorted(found) for record in _different(found[made])]
    say([*_edited(every), *_to_come(every)])
    return every


def _different(records: list[Record]) -> list[Record]:
    """Records of one key and one date without what is there twice, in an order of their own."""
    if len(records) == 1:
        return records
    by_content = {
        hashlib.sha256(each.model_dump_json().encode()).hexdigest(): each for each in records
    }
    return [by_content[each] for each in sorted(by_content)]


def _edited(records: Sequence[Record]) -> list[str]:
    """A sentence on each two records of one key and one date that differ."""
    seen: dict[tuple[str, str], Record] = {}
    said = []
    for record in records:
        made = (record.key, record.started_at)
        if record.key and made in seen:
            said.append(
                f"{cell_name(record.cell)}, {record.suite}: there are two records of key "
                f"{record.key[:KEY_DIGITS]} and one date that differ, so one of them was edited: "
                "one counts. Remove the wrong one."
            )
        seen[made] = record
    return said


def _to_come(records: Sequence[Record]) -> list[str]:
    """A sentence on records whose date is after today's."""
    today = datetime.now(UTC) + timedelta(days=1)  # clocks of machines differ a little
    later = [each for each in records if each.start > today]
    if not later:
        return []
    last = max(later, key=lambda each: each.start)
    count = "1 record has a date" if len(later) == 1 else f"{len(later)} records have dates"
    return [
        f"{count} still to come ({cell_name(last.cell)}, {last.suite}: {last.started_at}), so a "
        "clock was wrong. Where a figure was measured twice the later date counts, which may be "
        "the wrong one: remove it where that is so."
    ]


def _named(option: str, texts: Sequence[str]) -> dict[str, str]:
    """The texts of an option by the name of a table; each is given as NAME=TEXT."""
    found = {}
    for each in texts:
        name, equals, text = each.partition("=")
        if not (name and equals and text):
            raise ConfigError(f"{option} {each} is not NAME=TEXT, as in {option} accuracy=TEXT.")
        found[name] = text
    return found
