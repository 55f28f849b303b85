"""Write the generated parts of README.md from results/reference, or check that they are current.

  python tools/readme.py           rewrite them
  python tools/readme.py --check   exit 1 and print the parts that are out of date

A part is between `<!-- begin: NAME -->` and `<!-- end: NAME -->`. The report in results/reference
is generated from its records too, so its files cannot be edited by hand.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness.records.absent import absent_beside
from harness.records.record import Record
from harness.records.store import load_records
from harness.report.build import build_report, provenance
from harness.report.frame import from_records
from harness.report.table import Table
from harness.report.tables import summary_tables, to_markdown
from tools import (
    ablation_table,
    ordering_table,
    peers_table,
    product_table,
    real_table,
    solver_order_table,
)
from tools.kept import REPOSITORY, folder_of
from tools.protocol_tables import ACTIVATIONS, ALLOCATION, EQUAL_BYTES, Protocol, protocol_table
from tools.real_table import NAME, measured_on

TEXTS = "accuracy_texts"
QUICKSTART = ("accuracy", "accuracy_differences", "divergence", "cost")  # its tables in the README
README = REPOSITORY / "README.md"
REFERENCE = folder_of("quickstart")
REAL = folder_of(real_table.EXPERIMENT)
PEERS = folder_of("peers")
ORDERING = folder_of(ordering_table.EXPERIMENT)
CALIBRATION = folder_of("calibration")
ABLATION = folder_of(ablation_table.EXPERIMENT)
PRODUCT = folder_of(product_table.EXPERIMENT)
METHODS = REPOSITORY / "docs" / "methods"


def parts(records: list[Record]) -> dict[str, str]:
    """The text of every generated part by name."""
    made = "\n".join(f"Measured on: {line}." for line in provenance(records))
    tables = summary_tables(from_records(records))
    return {t.name: f"{to_markdown(t)}\n{made}" for t in tables if t.name in QUICKSTART}


def real_part(folder: Path) -> str:
    """The text of the real model's table, from the records kept in a folder."""
    records = load_records(folder)
    records += absent_beside(folder, records)
    return f"{to_markdown(real_table.real_table(records))}\n{measured_on(records)}"


def peers_part(folder: Path) -> str:
    """The text of the table of producers, from the records kept in a folder."""
    return _kept_part(folder, peers_table.peers_table, peers_table.TO_RUN)


def ordering_part(folder: Path) -> str:
    """The text of the paper's order on the real model, from the records kept in a folder."""
    return _kept_part(folder, ordering_table.ordering_table, ordering_table.TO_RUN)


def ablation_part(folder: Path) -> str:
    """The text of the table of all methods, from the records kept in a folder."""
    return _kept_part(folder, ablation_table.ablation_table, ablation_table.TO_RUN)


def order_part(folder: Path) -> str:
    """The text of the published order of solvers beside ours, from the same records."""
    records = load_records(folder) if folder.is_dir() else []
    return to_markdown(solver_order_table.solver_order_table(records))


def product_part(folder: Path) -> str:
    """The text of the table of the product of methods, from the records kept in a folder."""
    return _kept_part(folder, product_table.product_table, product_table.TO_RUN)


def protocol_part(protocol: Protocol) -> str:
    """The text of the table of an experiment of methods, from the records kept of it."""
    to_run = f"To run: `bitsweep run experiment={protocol.experiment}`."
    return _kept_part(folder_of(protocol.experiment), partial(protocol_table, protocol), to_run)


def _kept_part(folder: Path, table: Callable[[list[Record]], Table], to_run: str) -> str:
    """The table of the records in a folder with their machines, or how to get them."""
    records = load_records(folder) if folder.is_dir() else []
    return f"{to_markdown(table(records))}\n{measured_on(records)}" if records else to_run


def calibration_part(folder: Path) -> str:
    """The text of the spread over calibration texts, from the records kept in a folder."""
    records = load_records(folder) if folder.is_dir() else []
    table = next((t for t in summary_tables(from_records(records)) if t.name == TEXTS), None)
    if table is None:
        return "To run: `bitsweep run experiment=calibration`."
    made = "\n".join(f"Measured on: {line}." for line in provenance(records))
    return f"{to_markdown(table)}\n{made}"


def rewritten(text: str, generated: dict[str, str]) -> str:
    """A page with all generated parts inserted; KeyError for a part without markers."""
    for name, part in generated.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise KeyError(f"the page has no markers for {name}: add {begin} and {end}.")
        body = f"{begin}\n{part.strip()}\n{end}"
        text = pattern.sub(lambda _, body=body: body, text)  # type: ignore[misc]
    return text


def stale_report(records: list[Record]) -> list[str]:
    """Text files of the report that differ from those made from the records."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = build_report(records, Path(folder), "Quickstart")
        # Pictures depend on the versions of matplotlib and its fonts; text does not.
        text = [path for path in fresh if path.suffix in (".md", ".csv", ".tex")]
        return [
            str(kept.relative_to(REPOSITORY))
            for path in text
            if not (kept := REFERENCE / path.relative_to(folder)).is_file()
            or kept.read_bytes() != path.read_bytes()
        ]


def main() -> int:
    records = load_records(REFERENCE)
    if not records:
        print(f"no records in {REFERENCE}: make them with `make reference`")
        return 1
    other = {
        NAME: real_part(REAL),
        ordering_table.NAME: ordering_part(ORDERING),
        peers_table.NAME: peers_part(PEERS),
        TEXTS: calibration_part(CALIBRATION),
    }
    pages = {
        README: {**parts(records), **other},
        METHODS / "ablation.md": {
            ablation_table.NAME: ablation_part(ABLATION),
            solver_order_table.NAME: order_part(ABLATION),
            product_table.NAME: product_part(PRODUCT),
        },
        METHODS / "activations.md": {ACTIVATIONS.name: protocol_part(ACTIVATIONS)},
        METHODS / "allocation.md": {ALLOCATION.name: protocol_part(ALLOCATION)},
        METHODS / "equal_bytes.md": {EQUAL_BYTES.name: protocol_part(EQUAL_BYTES)},
    }
    stale = []
    for page, generated in pages.items():
        text = page.read_text(encoding="utf-8")
        fresh = rewritten(text, generated)
        if fresh != text:
            stale.append(str(page.relative_to(REPOSITORY)))
        if "--check" not in sys.argv[1:]:
            page.write_text(fresh, encoding="utf-8")
    if "--check" not in sys.argv[1:]:
        return 0
    stale = stale_report(records) + stale
    for name in stale:
        print(f"{name} is not what results/reference gives: run `make reference` or `make readme`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
