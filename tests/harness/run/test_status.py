"""What a sweep does now, from its diary: live processes, killed ones, failures, time left."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main
from harness.config.schema import Cell, CellConfig
from harness.records import leases
from harness.run import launch
from harness.run.diary import Diary, Job, Runner, Settled
from harness.run.events import Advanced, Failed, Finished, Queued, Started, Waiting
from harness.run.status import ENDED, FINISHED, KILLED, RUNNING, Sweep, lines_of, sweeps

FORK = multiprocessing.get_context("fork")
Make = Callable[..., CellConfig]


def diary(results: Path, name: str = "first") -> Diary:
    """Of four cells, one of which was done before."""
    found = Diary(results / "runs" / name)
    todo = [(), ("quantization", "perplexity"), ("quantization", "perplexity"), ("perplexity",)]
    found.begin("paper", [Job(n, f"cell-{n}", stages) for n, stages in enumerate(todo, start=1)])
    return found


def only(results: Path) -> Sweep:
    (sweep,) = sweeps(results)
    return sweep


def test_a_running_cell_its_stage_and_the_time_left(tmp_path: Path) -> None:
    told = diary(tmp_path)
    settled = Settled(runner="here")
    settled.hear(Finished("quantization", 30.0))
    settled.hear(Finished("perplexity", 10.0))
    told.settle(2, settled)
    with Runner(told, "here") as runner:
        runner.begins(3, "cell-3")
        runner.hear(Started("quantization"))
        time.sleep(1.1)  # progress is noted once a second
        runner.hear(Advanced("quantization", 3, 12, "layers.1.fc1"))
        sweep = only(tmp_path)
        assert sweep.state == RUNNING
        assert sweep.seconds_left() == 30 + 10 + 10
        (process,) = sweep.processes
        first, line = lines_of(sweep, process.doing.since + 60)
        assert first.startswith(
            "paper: running, 2 of 4 cells done, 1 running, about 50.0 s left (begun 20"
        )
        assert line == (
            f"  here (process {os.getpid()} on {leases.platform.node()}): cell-3 quantization "
            "3 of 12 (layers.1.fc1), for 60.0 s, 3 min left"
        )
        runner.hear(Waiting("process 9 on node3, since 2026-11-30 00:00:00 UTC,"))
        assert "waits for process 9 on node3" in lines_of(only(tmp_path), time.time())[1]
        runner.hear(Queued("latency", "cpu"))
        assert "cell-3 latency, waits for cpu, for 0." in lines_of(only(tmp_path), time.time())[1]
        runner.ends()
        assert only(tmp_path).running == []
    assert only(tmp_path).state == ENDED


def test_a_failure_is_said_with_its_cause_and_an_end_as_one(tmp_path: Path) -> None:
    told = diary(tmp_path)
    for number in (2, 3, 4):
        settled = Settled()
        settled.hear(
            Failed("perplexity", "OSError", "no [text]")
            if number == 3
            else Finished("perplexity", 1.0)
        )
        told.settle(number, settled)
    sweep = only(tmp_path)
    assert sweep.state == FINISHED
    first, failed = lines_of(sweep, time.time())
    assert first.startswith("paper: finished, 4 of 4 cells done, 1 of them failed (begun ")
    assert failed == "  cell-3: perplexity failed (OSError): no [text]"


def _run_a_cell(results: str) -> None:
    with Runner(Diary(Path(results) / "runs" / "first"), "worker-001") as runner:
        runner.begins(2, "cell-2")
        runner.hear(Started("quantization"))
        time.sleep(60)


def killed(results: Path) -> None:
    process = FORK.Process(target=_run_a_cell, args=(str(results),))
    process.start()
    while not any(each.doing.stage for each in only(results).processes):
        time.sleep(0.02)
    assert only(results).state == RUNNING
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_killed_process_is_told_from_a_live_one(tmp_path: Path) -> None:
    told = diary(tmp_path)
    killed(tmp_path)
    sweep = only(tmp_path)
    assert sweep.state == KILLED
    said = lines_of(sweep, time.time())
    assert said[0].startswith("paper: killed, 1 of 4 cells done (begun ")
    assert said[1] == "  what is done is kept: run its command again to continue"
    assert said[2].endswith(" was killed at cell-2 quantization")
    with Runner(told, "worker-002") as runner:
        runner.begins(3, "cell-3")
        sweep = only(tmp_path)
        assert sweep.state == RUNNING
        assert [each.who for each in sweep.running] == ["worker-002"]
        assert lines_of(sweep, time.time())[2].endswith(
            "was killed at cell-2 quantization, with which another goes on"
        )


def test_a_process_of_another_node_lives_while_it_renews_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = diary(tmp_path)
    with Runner(told, "worker-001") as runner:
        runner.begins(2, "cell-2")
        monkeypatch.setattr(leases, "_machine", lambda: ("another", "another"))
        assert only(tmp_path).state == RUNNING
        lease = tmp_path / "runs" / "first" / "runners" / "worker-001.1.lease"
        old = time.time() - 2 * leases.STALE_SECONDS
        os.utime(lease, (old, old))
        assert only(tmp_path).state == KILLED


def test_the_verb_after_a_sweep_and_for_folders_without_one(
    tiny_cell: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, results = tiny_cell(latency=False), tmp_path / "results"
    assert launch.run([Cell(config, ())]) == 0
    capsys.readouterr()
    assert main(["status", str(results)]) == 0
    assert capsys.readouterr().out.startswith("run: finished, 1 of 1 cells done (begun ")
    diary(results, "zzz")
    assert main(["status", str(results)]) == 0
    said = capsys.readouterr().out
    assert "paper: interrupted, 1 of 4 cells done" in said
    assert f"1 earlier: `bitsweep status {results} --all`" in said.replace("\n", " ")
    spaced = results.rename(tmp_path / "my results")  # a shell takes the line as it stands
    assert main(["status", str(spaced)]) == 0
    assert f"`bitsweep status '{spaced}' --all`" in capsys.readouterr().out
    spaced.rename(results)
    assert main(["status", str(results), "--all"]) == 0
    assert "run: finished" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["status", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
