"""A report of 5,000 records, as `bitsweep report` writes it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.records.record import Record
from harness.records.store import Store, load_records

KEPT = Path(__file__).resolve().parents[1] / "results/reference/quickstart"
RECORDS, MODELS = 5000, 10


def report() -> None:
    """`bitsweep report` over 5,000 records of 10 models, made of the quickstart's."""
    with tempfile.TemporaryDirectory() as folder:
        make_records(Path(folder), RECORDS)
        before, start = os.times(), time.perf_counter()
        command = [sys.executable, "-m", "harness", "report", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - start, os.times()
        page = Path(folder) / "reports/all/report.html"
        used = after.children_user + after.children_system
        used -= before.children_user + before.children_system
        peak = _peak_megabytes()
        print(f"{'wall time':<16} {wall:8.2f} s   load {os.getloadavg()[0]:.1f}")
        print(f"{'processor time':<16} {used:8.2f} s")
        print(f"{'memory':<16} {peak:8.0f} MB  the largest process")
        print(f"{'report.html':<16} {page.stat().st_size / 1e6:8.2f} MB")


def make_records(results: Path, count: int) -> None:
    """Write about `count` records into a results folder: those of the quickstart, made many.

    Every copy has a model, seed and keys of its own and other figures, so that no two cells and no
    two curves are alike.
    """
    kept = load_records(KEPT)
    store = Store(results)
    for copy in range(-(-count // len(kept))):
        for record in kept:
            made = _changed(record, copy)
            path = store.record_path(made.cell, made.cell_key, made.suite, made.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made.model_dump_json())  # not synced, as Store.write would


def _changed(record: Record, copy: int) -> Record:
    model, seed = f"model{copy % MODELS}", copy // MODELS
    factor = 1 + copy % MODELS / 100 + copy / 1e5
    keys = {
        name: hashlib.sha256(f"{copy} {getattr(record, name)}".encode()).hexdigest()
        for name in ("key", "cell_key")
    }
    config = {**record.config, "seed": seed, "model": {**record.config["model"], "name": model}}
    metrics = [each.model_copy(update={"value": factor * each.value}) for each in record.metrics]
    cell = record.cell.model_copy(update={"model": model, "seed": seed})
    changes = {"config": config, "cell": cell, "metrics": metrics, "samples_file": None, **keys}
    return record.model_copy(update=changes)


def _peak_megabytes() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
