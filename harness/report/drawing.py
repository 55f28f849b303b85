"""The plots of all models, drawn by several processes where there are many of them.

Drawing takes most of the time of a report of thousands of records. A helper is an interpreter that
is started for it: nothing that calls `build_report` has to be importable. It starts up while rows
are made, then all processes take one model after another until none is left.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.records.environment import usable_cores
from harness.report.by_calibration import draw_by_calibration
from harness.report.collection import set_aside, uncollected
from harness.report.curve_plot import draw_curves
from harness.report.pareto_plot import draw_pareto
from harness.report.plot_style import warm_up
from harness.report.plots import Drawn, draw_all
from harness.report.tables import OfModel, models_of
from harness.suites.find import declared_tables

COLLECTED = 8  # models; so many leave 150 MB of figures behind
MANY = 1000  # records
LEAST = 3  # models of a process: the plots of one take as long as starting it
ROWS, TAKEN, PLOTS = ".rows", ".taken", ".plots"  # files of a model: to be drawn, begun, drawn

_log = logging.getLogger("harness")

Plots = dict[str, list[Drawn]]


class Helpers:
    """Processes that draw: `give` models as soon as their rows are known, then `collect` plots."""

    def __init__(self, folder: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._folder, self._processes = folder, processes
        self._models: Sequence[OfModel] = ()
        self._sent: dict[str, str] = {}  # name of the file of a model

    def give(self, models: Sequence[OfModel]) -> None:
        """Let the helpers begin with what they can draw."""
        self._models = models
        if not self._processes:
            return
        for number, each in enumerate(models):
            # Another process finds the tables of built-in suites alone.
            if each.declared == declared_tables(each.rows, {}):
                self._sent[each.name] = name = f"{number:06d}"
                (self._folder / f"{name}{ROWS}").write_bytes(pickle.dumps(each.rows))
        for process in self._processes:
            assert process.stdin is not None
            try:
                process.stdin.close()
            except OSError:  # it has ended
                continue

    def collect(self) -> Plots:
        """The plots of all models, in their order; this process draws its share of them.

        The bytes do not depend on who drew them.
        """
        found: Plots = {}
        with uncollected(), set_aside():
            # From the end, where helpers come last.
            for number, each in enumerate(reversed(self._models), 1):
                if each.name not in self._sent or _take(self._folder, self._sent[each.name]):
                    found[each.name] = draw(each)
                    _collect(number)
            failed = [each for each in self._processes if each.wait() != 0]
            for process in failed:
                _log.warning("a process that drew plots ended with %s", process.returncode)
            for each in self._models:
                if each.name not in found:
                    file = self._folder / f"{self._sent[each.name]}{PLOTS}"
                    read = file.exists()
                    found[each.name] = pickle.loads(file.read_bytes()) if read else draw(each)
        return {each.name: found[each.name] for each in self._models}


@contextmanager
def drawing(models: int, records: int) -> Iterator[Helpers]:
    """Context: helpers for the plots of so many models, where these are enough for several.

    records  of so many, tables and page take long enough that one helper is worth its start.
    """
    wanted = max(models // LEAST, 2 if records >= MANY else 1)
    count = min(usable_cores(), wanted) - 1
    with tempfile.TemporaryDirectory(prefix="bitsweep-plots-") as folder:
        started: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count):
                started.append(_start(Path(folder)))
            yield Helpers(Path(folder), started)
        finally:
            for process in started:
                process.kill()
                process.communicate()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """A process that draws rows in a folder once its input ends, with the modules of this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__, str(folder)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)


def _take(folder: Path, name: str) -> bool:
    """Whether this process is the first that wants to draw a model."""
    try:
        os.rename(folder / f"{name}{ROWS}", folder / f"{name}{TAKEN}")
    except FileNotFoundError:
        return False
    return True


def _collect(drawn: int) -> None:
    if drawn % COLLECTED == 0:
        gc.collect()


def draw(model: OfModel) -> list[Drawn]:
    """All plots of one model."""
    rows, declared = model.rows, model.declared
    return [
        *draw_all(rows, declared),
        *draw_pareto(rows, declared),
        *draw_by_calibration(rows, declared),
        *draw_curves(rows, declared),
    ]


def _main(folder: Path) -> None:
    """What a helper does."""
    with uncollected():
        warm_up()
        sys.stdin.buffer.read()  # ends when all rows are in the folder
        with set_aside():
            names = sorted(file.stem for file in folder.glob(f"*{ROWS}"))
            for number, name in enumerate(names, 1):
                if _take(folder, name):
                    (model,) = models_of(pickle.loads((folder / f"{name}{TAKEN}").read_bytes()))
                    plots = pickle.dumps(draw(model))
                    (folder / f"{name}.part").write_bytes(plots)
                    os.rename(folder / f"{name}.part", folder / f"{name}{PLOTS}")
                    _collect(number)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
