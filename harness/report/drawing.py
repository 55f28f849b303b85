"""The plots of all models, drawn by several processes where there are many of them.

Drawing takes most of the time of a report of thousands of records. A process of its own is an
interpreter that is started for it: nothing that calls `build_report` has to be importable.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.records.environment import usable_cores
from harness.report.by_calibration import draw_by_calibration
from harness.report.curve_plot import draw_curves
from harness.report.pareto_plot import draw_pareto
from harness.report.plots import Drawn, draw_all
from harness.report.tables import OfModel, models_of
from harness.suites.find import declared_tables

LEAST = 3  # models of a process: the plots of one take as long as starting it

_log = logging.getLogger("harness")

Plots = dict[str, list[Drawn]]


@contextmanager
def drawing(models: Sequence[OfModel]) -> Iterator[Callable[[], Plots]]:
    """Context: other processes draw their share of the models meanwhile.

    Yields a function that draws the rest here and returns all plots by model, in the order of
    `models`. The bytes do not depend on who drew them.
    """
    # Another process finds the tables of built-in suites alone.
    sent = [each for each in models if each.declared == declared_tables(each.rows, {})]
    processes = max(1, min(usable_cores(), len(sent) // LEAST))
    shares = [sent[number::processes] for number in range(1, processes)]
    started: list[tuple[subprocess.Popen[bytes], Path]] = []
    with tempfile.TemporaryDirectory(prefix="bitsweep-plots-") as folder:
        try:
            for number, share in enumerate(shares):
                file = Path(folder) / f"{number}.pickle"
                file.write_bytes(pickle.dumps([row for each in share for row in each.rows]))
                started.append((_start(file), file))
            yield lambda: _collected(models, shares, started)
        finally:
            for process, _ in started:
                process.kill()
                process.wait()


def _start(file: Path) -> subprocess.Popen[bytes]:
    """A process that replaces the rows in a file by their plots, with the modules of this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-m", __name__, str(file)], env=environment)


def _collected(
    models: Sequence[OfModel],
    shares: Sequence[Sequence[OfModel]],
    started: Sequence[tuple[subprocess.Popen[bytes], Path]],
) -> Plots:
    elsewhere = {each.name for share in shares for each in share}
    found = {each.name: draw(each) for each in models if each.name not in elsewhere}
    for share, (process, file) in zip(shares, started, strict=True):
        if process.wait() == 0:
            found |= pickle.loads(file.read_bytes())
        else:
            _log.warning("a process that drew plots ended with %s: drawn here", process.returncode)
            found |= {each.name: draw(each) for each in share}
    return {each.name: found[each.name] for each in models}


def draw(model: OfModel) -> list[Drawn]:
    """All plots of one model."""
    rows, declared = model.rows, model.declared
    return [
        *draw_all(rows, declared),
        *draw_pareto(rows, declared),
        *draw_by_calibration(rows, declared),
        *draw_curves(rows, declared),
    ]


def _main(file: Path) -> None:
    models = models_of(pickle.loads(file.read_bytes()))
    file.write_bytes(pickle.dumps({each.name: draw(each) for each in models}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
