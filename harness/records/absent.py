"""What could not be had when a sweep last ran: records without figures, for tables alone.

    results/absent/<model>-<method>-<scheme>-s<seed>/<stage>.json

They have no key, because the key depends on the model and texts that are missing, so no plan reads
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import StoreError
from harness.records.record import Record
from harness.records.store import cell_name, read_record, write_atomically

FOLDER = "absent"


def keep_absent(results: Path, records: Iterable[Record]) -> None:
    """Write the records of stages that cannot be had; each replaces an older one of its stage."""
    for record in records:
        path = results / FOLDER / cell_name(record.cell) / f"{record.suite}.json"
        write_atomically(path, record.model_dump_json(indent=1) + "\n")


def absent_beside(results: Path, present: Sequence[Record]) -> list[Record]:
    """The kept records whose row and stage have no record of any seed among `present`.

    A file that is no record is left out, because the next run writes it again.
    """
    measured = {_row(record) for record in present}
    found = []
    for path in sorted((results / FOLDER).glob("*/*.json")):
        try:
            record = read_record(path)
        except StoreError:
            continue
        if _row(record) not in measured:
            found.append(record)
    return found


def _row(record: Record) -> tuple[str | None, ...]:
    cell = record.cell
    names = (cell.model, cell.method, cell.options, cell.scheme, cell.calibration)
    return (*names, record.suite)
