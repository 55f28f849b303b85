"""The verb `bitsweep sync RESULTS`: a wandb project again, from records alone."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import tracking
from harness.cell.parts import suites_in
from harness.config.schema import TrackerConfig
from harness.errors import ConfigError
from harness.records.record import Record
from harness.records.store import require_place
from harness.report.build import build_report
from harness.report.held import experiments
from harness.report.verb import joined
from harness.tracking import OFFLINE, ONLINE
from harness.tracking_page import track

OK, FAILED = 0, 1


@dataclass(frozen=True)
class Request:
    """What the command line asks for; harness.arguments describes each."""

    results: Path
    online: bool
    project: str
    entity: str | None
    config_dir: Path | None


def sync(request: Request) -> int:
    """Log every cell of a results folder that no run holds yet, and a page for each experiment.

    Returns the exit status: 1 if something could not be logged, which is said by name. Raises
    ConfigError for a folder without records, or that cannot be written, and for a project's name
    that wandb refuses.
    """
    tracking.require_project(request.project, "--project ")
    settings = TrackerConfig(
        name="wandb",
        mode=ONLINE if request.online else OFFLINE,
        project=request.project,
        entity=request.entity,
    )
    place = request.results / "wandb"
    try:
        require_place(place)
    except OSError as error:
        raise ConfigError(
            f"{place} cannot be written: copy {request.results / 'cells'} to a folder of yours, "
            "and name that."
        ) from error
    suites = suites_in(request.config_dir)
    records = joined([request.results])
    if not any(record.metrics for record in records):
        raise ConfigError(f"no record in {request.results} has a figure to log.")
    logged, held = 0, 0
    trouble: list[str] = []
    for name, own in experiments(request.results, records).items():
        with TemporaryDirectory() as folder:
            build_report(own, Path(folder), name, suites)
            plots = sorted((Path(folder) / "plots").glob("*.png"))
            done = track(_cells(own), own, plots, settings, request.results, name, suites)
            tracking.close()  # before the plots are gone
        logged, held, trouble = logged + done.logged, held + done.held, [*trouble, *done.trouble]
        if done.page is not None:
            print(f"page of {name}: {done.page}")
    for sentence in trouble:
        print(f"bitsweep: {sentence}", file=sys.stderr)
    runs = f"{logged} run{'s' * (logged != 1)} logged, {held} held already"
    print(f"{runs}, in {place}")
    if not request.online and logged + held:
        print(f"send them with: wandb sync {shlex.quote(str(place))}/offline-run-*")
    return FAILED if trouble else OK


def _cells(records: Sequence[Record]) -> list[list[Record]]:
    """The records of every cell that was run, in the order of their stages' ends."""
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda each: (each.cell_key, each.started_at, each.key)):
        if record.key:  # what could not be had has none
            found.setdefault(record.cell_key, []).append(record)
    return list(found.values())
