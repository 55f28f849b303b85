"""Sweeps from Python, and what they leave: records and reports."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.cell.parts import suites_in
from harness.config.kept import cells_of
from harness.errors import ConfigError, StoreError
from harness.records import store
from harness.records.record import Record
from harness.report import build
from harness.run.launch import run_cells


def run(
    overrides: str | Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    quiet: bool = False,
) -> list[Record]:
    """Run a sweep as `bitsweep run -m OVERRIDES` does; the records of all its cells.

    overrides   as on the command line: "experiment=quickstart", "scheme=w4,w3", "model.path=...".
    config_dir  a folder of yours laid out like conf/.
    quiet       print neither plan, progress nor table.

    Finished work is found, not repeated. A record of a stage that failed says why (`status`,
    `error`); the others go on. The report is written beside the records, in results/reports.

    Raises BitsweepError, before anything is computed, for a request that is impossible, and when
    the results can no longer be written.
    """
    words = [overrides] if isinstance(overrides, str) else list(overrides)
    folder = None if config_dir is None else Path(config_dir)
    ran = run_cells(cells_of(words, True, folder), folder, quiet)
    if ran.outcome.interrupted:
        raise KeyboardInterrupt
    if ran.outcome.stopped:
        raise StoreError(ran.outcome.stopped)
    if ran.trouble:
        warnings.warn(ran.trouble, stacklevel=2)
    return ran.records


def load_records(results: str | Path = "results") -> list[Record]:
    """All records of a results folder, in the order of their paths.

    Warns of files that are no records of this version, and leaves them out.
    """
    records, notes = store.scan_records(Path(results))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return records


def build_report(
    records: Iterable[Record],
    folder: str | Path,
    *,
    title: str = "Bitsweep report",
    config_dir: str | Path | None = None,
) -> list[Path]:
    """Write tables (Markdown, CSV, LaTeX) and plots of records; the files, summary.md first.

    config_dir  a folder of yours laid out like conf/ whose suites made some of the records.

    The same records give the same bytes. Raises BitsweepError without records, and for a folder
    that cannot be written.
    """
    found = list(records)
    if not found:
        raise ConfigError("there are no records to report: make some with bitsweep.run([...]).")
    suites = suites_in(None if config_dir is None else Path(config_dir))
    return build.build_report(found, Path(folder), title, suites)
