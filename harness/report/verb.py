"""The verb `bitsweep report RESULTS...`: tables, plots and page again, from records alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cell.parts import suites_in
from harness.errors import ConfigError
from harness.records.absent import absent_beside
from harness.records.record import Record
from harness.records.store import require_place, scan_records, write_atomically
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
        for name, data in files.items():
            write_atomically(folder / name, data)
        print(f"interchange: {len(files)} files in {folder / 'interchange'}")
        for sentence in said:
            print(sentence)
    return 0


def joined(folders: Sequence[Path]) -> list[Record]:
    """The records of results folders; a file that is no record is named on standard error.

    A record that several folders hold counts once. Raises ConfigError for a folder without any.
    """
    found: dict[str, Record] = {}
    for folder in folders:
        records, notes = scan_records(folder)
        for note in notes:
            print(f"bitsweep: {note}", file=sys.stderr)
        absent = absent_beside(folder, records)
        if not records and not absent:
            raise ConfigError(
                f"{folder} holds no records: make some with `bitsweep run`, or name the "
                "results folder of a run, as in `bitsweep report my/results`."
            )
        found |= {record.model_dump_json(): record for record in [*records, *absent]}
    return list(found.values())


def _named(option: str, texts: Sequence[str]) -> dict[str, str]:
    """The texts of an option by the name of a table; each is given as NAME=TEXT."""
    found = {}
    for each in texts:
        name, equals, text = each.partition("=")
        if not (name and equals and text):
            raise ConfigError(f"{option} {each} is not NAME=TEXT, as in {option} accuracy=TEXT.")
        found[name] = text
    return found
