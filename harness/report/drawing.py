"""The plots of all models, drawn by several processes where there are many of them.

Drawing takes half of the time of a report of thousands of records. A helper is an interpreter that
is started for it: nothing that calls `build_report` has to be importable. It starts up while rows
are made, then all processes take one plot after another until none is left.
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
from harness.report.assemble import OfModel
from harness.report.by_calibration import calibration_plots
from harness.report.collection import set_aside, uncollected
from harness.report.column_plots import plots_of_columns
from harness.report.curve_plot import curve_plots
from harness.report.leading import Leading
from harness.report.pareto_plot import pareto_plots
from harness.report.plot_style import warm_up
from harness.report.plots import Drawn, Plot
from harness.report.tables import models_of
from harness.suites.find import declared_tables

COLLECTED = 40  # plots; so many leave 100 MB of figures behind
MANY = 1000  # records
LEAST = 3  # models of a process: the plots of one take as long as starting it
ROWS = ".rows"  # the file of a model
ASKED, TAKEN, FILES = ".asked", ".taken", ".files"  # those of a plot: to be drawn, begun, drawn

_log = logging.getLogger("harness")

Plots = dict[str, list[Drawn]]


class Helpers:
    """Processes that draw: `give` models as soon as their rows are known, then `collect` plots."""

    def __init__(self, folder: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._folder, self._processes = folder, processes
        self._plots: dict[str, list[Plot]] = {}  # by model
        self._sent: dict[tuple[str, int], str] = {}  # names of files by model and place of the plot

    def give(self, models: Sequence[OfModel]) -> None:
        """Let the helpers begin with what they can draw."""
        self._plots = {each.name: plots_of(each) for each in models}
        if not self._processes:
            return
        for number, each in enumerate(models):
            # Another process finds the tables of built-in suites alone.
            if each.declared == declared_tables(each.rows, {}):
                (self._folder / f"{number:06d}{ROWS}").write_bytes(pickle.dumps(each.rows))
                for place in range(len(self._plots[each.name])):
                    self._sent[each.name, place] = name = f"{number:06d}-{place:03d}"
                    (self._folder / f"{name}{ASKED}").touch()
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
        every = [
            (model, place) for model, plots in self._plots.items() for place in range(len(plots))
        ]
        found: dict[tuple[str, int], Drawn] = {}
        with uncollected(), set_aside():
            # From the end, where helpers come last.
            for each in reversed(every):
                if each not in self._sent or _take(self._folder, self._sent[each]):
                    found[each] = self._plot(each).draw()
                    _collect(len(found))
            failed = [each for each in self._processes if each.wait() != 0]
            for process in failed:
                _log.warning("a process that drew plots ended with %s", process.returncode)
            for each in every:
                if each not in found:
                    found[each] = self._read(each) or self._plot(each).draw()
        return {
            model: [found[model, place] for place in range(len(plots))]
            for model, plots in self._plots.items()
        }

    def _plot(self, which: tuple[str, int]) -> Plot:
        model, place = which
        return self._plots[model][place]

    def _read(self, which: tuple[str, int]) -> Drawn | None:
        """What a helper has drawn; None if it ended before."""
        file = self._folder / f"{self._sent[which]}{FILES}"
        if not file.exists():
            return None
        plot = self._plot(which)
        return Drawn(plot.name, plot.title, pickle.loads(file.read_bytes()))


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
    """Whether this process is the first that wants to draw a plot."""
    try:
        os.rename(folder / f"{name}{ASKED}", folder / f"{name}{TAKEN}")
    except FileNotFoundError:
        return False
    return True


def _collect(drawn: int) -> None:
    if drawn % COLLECTED == 0:
        gc.collect()


def plots_of(model: OfModel) -> list[Plot]:
    """All plots of one model, in the order of the report; every process finds the same."""
    leading = Leading(model.rows, model.declared)
    return [
        *plots_of_columns(leading),
        *pareto_plots(leading),
        *calibration_plots(leading),
        *curve_plots(leading),
    ]


def _main(folder: Path) -> None:
    """What a helper does."""
    with uncollected():
        warm_up()
        sys.stdin.buffer.read()  # ends when all rows are in the folder
        with set_aside():
            known: dict[str, list[Plot]] = {}
            names = sorted(file.stem for file in folder.glob(f"*{ASKED}"))
            for number, name in enumerate(names, 1):
                if _take(folder, name):
                    model, _, place = name.partition("-")
                    if model not in known:
                        rows = pickle.loads((folder / f"{model}{ROWS}").read_bytes())
                        (of_model,) = models_of(rows)
                        known[model] = plots_of(of_model)
                    files = pickle.dumps(known[model][int(place)].draw().files)
                    (folder / f"{name}.part").write_bytes(files)
                    os.rename(folder / f"{name}.part", folder / f"{name}{FILES}")
                    _collect(number)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
