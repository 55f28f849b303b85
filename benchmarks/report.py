"""A report of 5,000 records, as `bitsweep report` writes it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from harness.records.record import CellIdentity, Record
from harness.records.store import Store, load_records

KEPT = Path(__file__).resolve().parents[1] / "results/reference/quickstart"
RECORDS, MODELS = 5000, 10


def report() -> None:
    """`bitsweep report` over 5,000 records made of the quickstart's: of 10 models, and of one."""
    for name, changed in (("10 models", _of_models), ("one model", _of_methods)):
        with tempfile.TemporaryDirectory() as folder:
            make_records(Path(folder), RECORDS, changed)
            print(f"\n5,000 records, {name}")
            _measure(folder)


def _measure(folder: str) -> None:
    before, start = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "harness", "report", folder]
    largest = together = 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        sizes = _resident(process)
        largest, together = max([largest, *sizes]), max(together, sum(sizes))
        time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    wall, after = time.perf_counter() - start, os.times()
    page = Path(folder) / "reports/all/report.html"
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    print(f"{'wall time':<16} {wall:8.2f} s   load {os.getloadavg()[0]:.1f}")
    print(f"{'processor time':<16} {used:8.2f} s")
    print(f"{'memory':<16} {largest / 1e6:8.0f} MB  the largest process")
    print(f"{'':<16} {together / 1e6:8.0f} MB  all processes, what they share counted in each")
    print(f"{'report.html':<16} {page.stat().st_size / 1e6:8.2f} MB")


def _resident(process: psutil.Process) -> list[int]:
    """Bytes in memory of a process and of those that it started."""
    sizes = []
    with suppress(psutil.NoSuchProcess):  # it may end meanwhile
        for each in (process, *process.children(recursive=True)):
            sizes.append(each.memory_info().rss)
    return sizes


def make_records(
    results: Path, count: int, changed: Callable[[Record, int], Record | None]
) -> None:
    """Write about `count` records into a results folder: those of the quickstart, made many.

    changed  makes a copy of a record with its number; None for none.
    """
    kept = load_records(KEPT)
    store = Store(results)
    for copy in range(-(-count // len(kept))):
        for record in kept:
            made = changed(record, copy)
            if made is None:
                continue
            path = store.record_path(made.cell, made.cell_key, made.suite, made.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made.model_dump_json())  # not synced, as Store.write would


def _of_models(record: Record, copy: int) -> Record:
    """A copy with a model, seed, keys and figures of its own: no two cells or curves are alike."""
    model, seed = f"model{copy % MODELS}", copy // MODELS
    factor = 1 + copy % MODELS / 100 + copy / 1e5
    config = {**record.config, "seed": seed, "model": {**record.config["model"], "name": model}}
    cell = record.cell.model_copy(update={"model": model, "seed": seed})
    return _copied(record, copy, factor, config, cell)


def _of_methods(record: Record, copy: int) -> Record | None:
    """A copy with an option of its own: some 100 methods, of which each has a row a scheme."""
    if record.cell.full_precision:
        return None if copy else record
    config = {**record.config, "method": {**record.config["method"], "copy": copy}}
    cell = record.cell.model_copy(update={"options": f"copy={copy}"})
    return _copied(record, copy, 1 + copy / 1e4, config, cell)


def _copied(
    record: Record, copy: int, factor: float, config: dict[str, Any], cell: CellIdentity
) -> Record:
    keys = {
        name: hashlib.sha256(f"{copy} {getattr(record, name)}".encode()).hexdigest()
        for name in ("key", "cell_key")
    }
    metrics = [each.model_copy(update={"value": factor * each.value}) for each in record.metrics]
    changes = {"config": config, "cell": cell, "metrics": metrics, "samples_file": None, **keys}
    return record.model_copy(update=changes)
