"""The results folder that a user names for a verb: its records, or a sentence on what it lacks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import ConfigError
from harness.records.record import Record
from harness.records.store import scan_records


def require_folder(place: Path) -> None:
    """Raise ConfigError for a file, and where there is nothing."""
    if place.is_file():
        raise ConfigError(f"{place} is a file: name the results folder of earlier runs.")
    if not place.is_dir():
        raise ConfigError(f"there is no folder {place}: name the results folder of earlier runs.")


def asked_records(place: Path) -> list[Record]:
    """The records of a results folder; files that are none are named on standard error.

    Raises ConfigError if there is no such folder, or no record in it.
    """
    require_folder(place)
    records, notes = scan_records(place)
    say(notes)
    if not records:
        raise ConfigError(
            f"{place} holds no records: make some with `bitsweep run`, or name the results folder "
            "of a run."
        )
    return records


def say(notes: Sequence[str]) -> None:
    """Print what a user must know on standard error."""
    for note in notes:
        print(f"bitsweep: {note}", file=sys.stderr)
