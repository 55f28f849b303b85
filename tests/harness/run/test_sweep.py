"""The cells of a sweep in turn: what is counted, what goes on, and what ends it."""

import io
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.errors import StoreError
from harness.run import sweep
from harness.run.diary import Diary
from harness.run.events import Failed, Finished
from harness.run.signals import Terminated

QUIET = Console(file=io.StringIO())


class Plans:
    """Plans of cells that run by a script of events, or raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *scripts: list[Any]) -> None:
        self.ran: list[int] = []
        self.prepared = self.warmed = 0
        self.writable = True
        monkeypatch.setattr(sweep, "Screen", lambda *_: _Silent())
        monkeypatch.setattr(sweep, "prepare", self._prepare)
        monkeypatch.setattr(sweep, "warm_up", self._warm_up)
        monkeypatch.setattr(sweep, "run_in_process", self._run)
        monkeypatch.setattr(sweep, "cell_name", lambda identity: f"cell {identity}")
        self.scripts = scripts
        uncalibrated = SimpleNamespace(calibration=None)
        self.plans: list[Any] = [
            SimpleNamespace(
                identity=number,
                cell=SimpleNamespace(number=number, store=self, choices=uncalibrated),
                todo=["x"] if script else [],
                stages={"x": "", "y": ""},
            )
            for number, script in enumerate(scripts)
        ]

    def _prepare(self, plans: list[Any]) -> None:
        assert self.ran == []
        self.prepared = len(plans)

    def _warm_up(self, meanwhile: Any) -> None:
        assert self.ran == [], "what is imported meanwhile would disturb a stage"
        assert self.prepared == len(self.plans)
        assert meanwhile is sweep._prepare_report
        self.warmed += 1

    def _run(self, cell: Any, hear: Any, log: Path) -> None:
        assert log.name == f"{cell.number + 1:03}-cell_{cell.number}.log"
        self.ran.append(cell.number)
        for event in self.scripts[cell.number]:
            if isinstance(event, BaseException):
                raise event
            hear(event)

    def check_writable(self) -> None:
        if not self.writable:
            raise StoreError("the disk is full")

    def outcome(self) -> sweep.Outcome:
        with tempfile.TemporaryDirectory() as folder:
            return sweep.run_sweep(self.plans, Diary(Path(folder)), QUIET)


class _Silent:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def cell(self, *_: object) -> None: ...

    def show(self, event: object) -> None: ...


def finished(cached: bool = False) -> Finished:
    return Finished("x", 1.0, cached)


def failed(kind: str) -> Failed:
    return Failed("x", kind, "message")


def test_stages_are_counted_and_a_failure_costs_no_other_cell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans = Plans(
        monkeypatch, [], [failed("ValueError")], [finished(cached=True), finished(), finished()]
    )
    found = plans.outcome()
    assert (plans.prepared, plans.warmed) == (3, 1)
    assert plans.ran == [1, 2], "a cell whose stages are all done starts no process"
    assert (found.finished, found.cached) == (2, 2 + 1)
    assert [(name, each.type) for name, each in found.failures] == [("cell 1", "ValueError")]
    assert (found.stopped, found.interrupted) == (None, 0)


@pytest.mark.parametrize("kind", ["StoreError", "ArtifactError", "OSError"])
@pytest.mark.parametrize("writable", [True, False])
def test_trouble_with_files_ends_a_sweep_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, kind: str, writable: bool
) -> None:
    plans = Plans(monkeypatch, [failed(kind)], [finished()])
    plans.writable = writable
    found = plans.outcome()
    assert plans.ran == ([0, 1] if writable else [0])
    assert found.stopped == (None if writable else "the disk is full")
    assert len(found.failures) == 1


@pytest.mark.parametrize(("signal", "status"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
def test_a_signal_ends_it_with_its_status_and_what_was_finished(
    monkeypatch: pytest.MonkeyPatch, signal: BaseException, status: int
) -> None:
    found = Plans(monkeypatch, [finished(), signal], [finished()]).outcome()
    assert (found.finished, found.interrupted, found.stopped) == (1, status, None)


def test_a_sweep_with_nothing_to_do_starts_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = Plans(monkeypatch, [], [])
    assert plans.outcome().cached == 4
    assert plans.warmed == 0


def test_a_signal_before_the_first_cell_has_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_meanwhile: Any) -> None:
        raise Terminated

    plans = Plans(monkeypatch, [finished()])
    monkeypatch.setattr(sweep, "warm_up", interrupted)
    found = plans.outcome()
    assert (found.interrupted, found.finished, plans.ran) == (143, 0, [])


def test_what_a_report_needs_can_be_imported_ahead() -> None:
    """In a sweep its errors pass without a word: the report would say them."""
    sweep._prepare_report()
