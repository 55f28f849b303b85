"""Cells in processes of their own: what kills one is recorded and costs nothing else."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cell.plan import DONE, CellPlan
from harness.config.schema import CellConfig
from harness.run import process
from harness.run.events import Advanced, Event, Failed, Finished, Started, Waiting
from harness.run.process import run_in_process
from harness.run.signals import as_interrupts
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]


def kill_child(number: signal.Signals) -> None:
    (child,) = [p for p in multiprocessing.active_children() if p.name == "bitsweep-cell"]
    assert child.pid is not None
    os.kill(child.pid, number)


class Listener:
    """Collects events, and kills the process when a stage begins for the first time."""

    def __init__(self, kill_at: str | None = None, number: signal.Signals = signal.SIGKILL) -> None:
        self.events: list[Event] = []
        self.kill_at, self.number = kill_at, number

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Started) and event.stage == self.kill_at:
            self.kill_at = None
            kill_child(self.number)

    @property
    def finished(self) -> list[str]:
        return [e.stage for e in self.events if isinstance(e, Finished) and not e.cached]

    @property
    def failed(self) -> list[Failed]:
        return [e for e in self.events if isinstance(e, Failed)]


def start(config: CellConfig, tmp_path: Path, listener: Listener) -> CellPlan:
    run_in_process(cell_of(config), listener, tmp_path / "logs" / "cell.log")
    return plan_of(config)


def test_a_cell_runs_in_a_process_of_its_own_and_prints_to_its_log(
    tiny_cell: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listener = Listener()
    plan = start(tiny_cell(), tmp_path, listener)
    assert listener.finished == ["quantization", "perplexity", "latency"]
    assert plan.todo == []
    assert (tmp_path / "logs" / "cell.log").exists()
    assert capfd.readouterr() == ("", "")
    record = plan.cell.find("perplexity")
    assert record is not None
    assert record.environment["threads"] == 1, "runtime.threads reaches the process"
    assert record.peak_memory_bytes is not None
    assert record.peak_memory_bytes > 50e6


IN_A_CELL = """
import gc
from harness.records.environment import commit, machine, package_versions
from quant.checkpoint.partial import code_hash
from transformers import conversion_mapping
known = [each.cache_info().currsize for each in (commit, machine, package_versions, code_hash)]
table = conversion_mapping._checkpoint_conversion_mapping_cache
told.send((known, table is not None, gc.get_freeze_count(), len(gc.get_objects())))
"""


@pytest.fixture
def own_server() -> None:
    """A process has one server: one that another room's tests started knows nothing of cells."""
    forkserver._forkserver._stop()
    process.context.cache_clear()


@pytest.mark.usefixtures("own_server")
def test_a_cell_finds_what_all_cells_need_to_know() -> None:
    """And a collection in it looks at few objects: it would copy all those of the server."""
    told, theirs = process.context().Pipe()
    child = process.context().Process(target=exec, args=(IN_A_CELL, {"told": theirs}))
    child.start()
    assert told.poll(600)
    known, renames, aside, own = told.recv()
    child.join()
    assert known == [1, 1, 1, 1]
    assert renames
    assert aside > 100_000
    assert own < aside / 10


SERVER_S_SIGNALS = """
import multiprocessing.forkserver as forkserver
from harness.run import process
process.context().set_forkserver_preload([])
child = process.context().Process(target=print, args=("",))
process._start(child)
child.join()
print(open(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_the_server_hears_no_signal_while_it_imports() -> None:
    """It would print a traceback on Ctrl-C, which reaches the whole group of a terminal."""
    command = [sys.executable, "-c", SERVER_S_SIGNALS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    (blocked,) = re.findall(r"^SigBlk:\s*(\w+)$", done.stdout, re.MULTILINE)
    mask = int(blocked, 16)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert mask & 1 << number - 1, number


def test_the_server_imports_parts_of_ours_and_not_those_of_others(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny_cell())
    foreign = [
        replace(each, part=replace(each.part, sha256="0" * 64))
        if each.suite.name == "latency"
        else each
        for each in plan.cell.choices.suites
    ]
    choices = replace(plan.cell.choices, suites=tuple(foreign))
    asked: list[list[str]] = []
    server = SimpleNamespace(set_forkserver_preload=asked.append)
    monkeypatch.setattr(process, "context", lambda: server)
    process.prepare([replace(plan, cell=replace(plan.cell, choices=choices))])
    done = dict.fromkeys(plan.stages, DONE)
    process.prepare([replace(plan, stages=done)])
    names, nothing = asked
    assert {"quant.solvers.rtn", "harness.suites.perplexity"} <= set(names)
    assert "harness.suites.latency" not in names
    assert (names[0], names[-1]) == ("harness.run.preload", "harness.run.warm")
    assert len(names) == len(set(names))
    assert nothing == [*process.PRELOAD, "harness.run.warm"]


def test_a_killed_suite_is_recorded_with_the_likely_cause_and_the_rest_goes_on(
    tiny_cell: Make, tmp_path: Path
) -> None:
    listener = Listener(kill_at="perplexity")
    plan = start(tiny_cell(), tmp_path, listener)
    (failure,) = listener.failed
    assert (failure.stage, failure.type) == ("perplexity", "SIGKILL")
    assert "out of memory" in failure.message
    assert listener.finished == ["quantization", "latency"]
    record = plan.cell.find("perplexity")
    assert record is not None
    assert record.error is not None
    assert record.error.type == "SIGKILL"
    assert plan.todo == ["perplexity"]
    again = Listener()
    start(tiny_cell(), tmp_path, again)
    assert again.finished == ["perplexity"]


def test_a_crash_in_the_quantization_stops_the_cell(tiny_cell: Make, tmp_path: Path) -> None:
    listener = Listener(kill_at="quantization", number=signal.SIGSEGV)
    start(tiny_cell(), tmp_path, listener)
    assert [(f.stage, f.type) for f in listener.failed] == [("quantization", "SIGSEGV")]
    assert listener.finished == []


def test_a_cell_that_takes_too_long_is_stopped(tiny_cell: Make, tmp_path: Path) -> None:
    listener = Listener()
    start(tiny_cell("runtime.timeout_s=0.001"), tmp_path, listener)
    (failure,) = listener.failed
    assert failure.type == "Timeout"
    assert "runtime.timeout_s=0.001" in failure.message
    assert multiprocessing.active_children() == []


def test_an_interrupt_stops_the_process_and_keeps_what_is_finished(
    tiny_cell: Make, tmp_path: Path
) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, Started) and event.stage == "latency":
            raise KeyboardInterrupt

    config = tiny_cell()
    with pytest.raises(KeyboardInterrupt):
        run_in_process(cell_of(config), interrupt, tmp_path / "cell.log")
    assert multiprocessing.active_children() == []
    assert plan_of(config).todo == ["latency"]


def test_waiting_for_another_process_is_said(tiny_cell: Make, tmp_path: Path) -> None:
    config = tiny_cell("method=none", "scheme=w16", latency=False)
    cell = cell_of(config)
    heard: list[Event] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(cell.store.lock(cell.keys.cell))

        def listen(event: Event) -> None:
            heard.append(event)
            if isinstance(event, Waiting):
                stack.close()

        run_in_process(cell, listen, tmp_path / "cell.log")
    assert isinstance(heard[0], Waiting)
    assert heard[0].who.startswith(f"process {os.getpid()} on ")
    assert [type(event) for event in heard if not isinstance(event, Advanced)] == [
        Waiting,
        Started,
        Finished,
    ]


def test_what_is_done_while_the_server_starts_may_fail() -> None:
    calls = []

    def meanwhile() -> None:
        calls.append(multiprocessing.active_children())
        raise ImportError("no module named matplotlib")

    process.warm_up(meanwhile)
    assert len(calls) == 1
    assert multiprocessing.active_children() == []


def test_waiting_takes_none_of_the_cell_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(process.time, "monotonic", lambda: now)
    allowance = process._Allowance(10.0)
    now += 4
    assert allowance.left() == 6
    allowance.hear(Waiting("another process"))
    now += 1000
    assert allowance.left() is None
    allowance.hear(Started("perplexity"))
    now += 5
    allowance.hear(Advanced("perplexity", 1, 2, "text"))
    assert allowance.left() == 1
    now += 5
    assert allowance.left() == 0
    assert process._Allowance(None).left() is None


PLUGIN = """
from hydra._internal.core_plugins.basic_launcher import BasicLauncher


class CountingLauncher(BasicLauncher):
    def launch(self, job_overrides, initial_job_idx):
        with open({log!r}, "a") as file:
            file.writelines(each[-1] + "\\n" for each in job_overrides)
        return super().launch(job_overrides, initial_job_idx)
"""


def test_cells_through_a_launcher_plugin_of_hydra(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin gets one job per cell with work to do, and what jobs return is summed up."""
    import importlib

    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from harness.config.compose import compose_cells
    from harness.launchers import plugin as launcher
    from harness.launchers.choosing import chosen, is_chosen

    log = tmp_path / "jobs.txt"
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "counting.py").write_text(PLUGIN.format(log=str(log)))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("hydra_plugins", "hydra_plugins.counting"):  # gone again after this test
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    plugin = importlib.import_module("hydra_plugins.counting").CountingLauncher
    Plugins.instance().register(plugin)
    node = {"_target_": "hydra_plugins.counting.CountingLauncher"}
    ConfigStore.instance().store(group="hydra/launcher", name="counting", node=node)
    cells = compose_cells(
        [*tiny_overrides, "scheme=w4,w3", "hydra/launcher=counting"], multirun=True
    )
    assert is_chosen(cells)
    assert chosen(cells, None) is None, "it is none of ours"
    plans = [plan_of(cell.config) for cell in cells]
    outcome = launcher.run_with_launcher(cells, plans)
    assert (outcome.finished, outcome.failures) == (6, [])
    assert log.read_text() == "scheme=w4\nscheme=w3\n"
    assert [plan_of(cell.config).todo for cell in cells] == [[], []]
    assert (tmp_path / "results" / "runs" / "multirun").is_dir()


def test_an_interrupt_while_the_starting_thread_begins_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it has begun is finished: a forked process would complain of the end of its pipe."""
    ended: list[bool] = []

    class Slow:
        pid = 1

        def start(self) -> None:
            time.sleep(0.3)
            ended.append(True)

    begin = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with as_interrupts(), pytest.raises(KeyboardInterrupt):
        process._start(Slow())
    assert ended == [True]
