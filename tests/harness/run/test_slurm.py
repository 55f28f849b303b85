"""Sweeps by jobs of a real Slurm: killed, preempted, out of time.

Needs Debian's slurm-wlm and munge; test_launched.py holds the same way against scripts.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import warm
from tests.harness.run.disturbing import (
    begin,
    figures,
    survived,
    tables,
    undisturbed,
    wait_for,
    workers,
)
from tests.harness.run.slurm_cluster import NODES, absent, cluster

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(absent()), reason="needs a Slurm: apt install slurm-wlm munge"),
]
JOBS = ["hydra/launcher=slurm", "hydra.launcher.workers=2", "hydra.launcher.cpus=2"]


def jobs_of(results: Path) -> Path:
    """submitit's folder of the one sweep."""
    (folder,) = (results / "runs").glob("*")
    return folder / "jobs"


def errors(jobs: Path) -> str:
    return "".join(file.read_text() for file in jobs.glob("*.err"))


@pytest.fixture
def slurm(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A cluster of two nodes; the folder of its logs."""
    pytest.importorskip("submitit", reason="needs submitit: pip install submitit")
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as conf:
        monkeypatch.setenv("SLURM_CONF", str(conf))
        yield conf.parent


@pytest.mark.usefixtures("slurm")
def test_killed_jobs_and_commands_leave_the_same_tables(
    sweep: list[str], tmp_path: Path, started: list[warm.Process]
) -> None:
    words = [*sweep, "seed=0,1,2,3,4"]
    _, killed = survived(words, "slurm", 20, tmp_path, started)
    assert len(killed) >= 15


@pytest.mark.usefixtures("slurm")
def test_jobs_that_others_preempt_are_requeued_and_go_on(
    sweep: list[str], tmp_path: Path, started: list[warm.Process]
) -> None:
    words = [*sweep, "seed=0,1,2,3"]
    before = undisturbed(words, tmp_path / "undisturbed")
    results = tmp_path / "results"
    command = begin([*words, *JOBS], sys.executable)  # which gets the signals itself
    started.append(command)
    wait_for(lambda: len(workers(results)) == 2)
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wait"]
    nodes = f"--nodes={len(NODES)}"
    subprocess.run([*urgent, nodes, "--wrap=sleep 1"], check=True, timeout=120)
    assert command.wait(300) == 0, command.read()[1]
    jobs = jobs_of(results)
    logs = errors(jobs)
    assert "DUE TO PREEMPTION" in logs, logs
    made = {file.name.partition("_")[0] for file in jobs.glob("*_submitted.pkl")}
    assert made == {"1", "2"}, "no job was submitted in place of one that was preempted"
    assert (figures(results), tables(results)) == before


@pytest.mark.usefixtures("slurm")
def test_jobs_whose_time_is_up_are_queued_again(
    sweep: list[str], tmp_path: Path, started: list[warm.Process]
) -> None:
    """submitit asks for a signal 90 seconds before the end: at once in a job of one minute."""
    words = [*sweep, "seed=0,1,2,3"]
    before = undisturbed(words, tmp_path / "undisturbed")
    results = tmp_path / "results"
    command = begin([*words, *JOBS, "hydra.launcher.minutes=1"], sys.executable)
    started.append(command)
    wait_for(lambda: len(workers(results)) == 2)
    held = [*workers(results)]
    for pid in held:  # Slurm looks for jobs whose time is up twice a minute
        os.kill(pid, signal.SIGSTOP)
    time.sleep(45)
    for pid in held:
        with suppress(ProcessLookupError):  # Slurm has let it go on, and it has left
            os.kill(pid, signal.SIGCONT)
    assert command.wait(600) == 0, command.read()[1]
    logs = errors(jobs_of(results))
    assert "this job is timed-out" in logs, logs
    assert "DUE TO JOB REQUEUE" in logs, logs
    assert (figures(results), tables(results)) == before
