"""Workers as jobs of a Slurm cluster, submitted by submitit.

Whether a job lives is asked of squeue, not of sacct, so that a cluster without accounting will do.
A job that Slurm preempts gets SIGTERM and is requeued by Slurm; one whose time is up gets SIGUSR2
and is requeued by submitit. Either goes on at the block.

Where a partition has a GraceTime, Slurm requeues only what it had to kill: a job that ends by
itself in that time has ended for good. So a worker that is preempted stops its cell and waits.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.launchers.base import Launcher, LaunchError, gpus_of_worker
from harness.launchers.submitted import Submitted, Work

COMMANDS = ("sbatch", "squeue", "scancel", "srun")
SECONDS_BETWEEN = 10.0  # questions to the scheduler
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Options:
    """conf/hydra/launcher/slurm.yaml says what they are."""

    workers: int = 8
    gpus: int | None = None
    cpus: int = 4
    memory_gb: float | None = None
    minutes: int = 720
    requeues: int = 10
    partition: str | None = None
    account: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("workers", "cpus", "minutes"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ConfigError(f"hydra.launcher.{name}={value} is too small; use 1 or more.")


def start(folder: Path, count: int, options: Options, gpus: int) -> Submitted:
    """Submit `count` jobs of one task each."""
    import submitit

    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        raise LaunchError(
            f"hydra/launcher=slurm needs {', '.join(absent)}, which {_are(absent)} not on PATH: "
            "run this on a login node of the cluster, or use hydra/launcher=local on one machine."
        )
    executor = submitit.SlurmExecutor(folder / "jobs", max_num_timeout=options.requeues)
    try:
        executor.update_parameters(**_parameters(options, gpus))
    except ValueError as error:
        said = " ".join(str(error).split())
        raise LaunchError(f"hydra.launcher.options: {said}") from error
    queue = _Queue()

    def submit(work: Work) -> Any:
        return executor.submit(_Preemptible(work.folder, work.number, work.of))

    return Submitted(folder, count, submit, lambda jobs: queue.holds([job.job_id for job in jobs]))


def _parameters(options: Options, gpus: int) -> dict[str, Any]:
    """The parameters of submitit for one worker; gpus is what a cell needs."""
    wanted = {
        "gpus_per_node": int(gpus_of_worker(options.gpus, gpus)) or None,
        "mem": None if options.memory_gb is None else f"{options.memory_gb:g}GB",
        "partition": options.partition,
        "account": options.account,
    }
    return {
        "job_name": "bitsweep",
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": options.cpus,
        "time": options.minutes,
        **{name: value for name, value in wanted.items() if value is not None},
        **options.options,
    }


class _Preemptible(Work):
    """Work whose job is requeued when Slurm preempts it."""

    def __call__(self) -> None:
        from harness.run.signals import Terminated

        try:
            super().__call__()
        except Terminated:
            while preempted(os.environ["SLURM_JOB_ID"]):
                time.sleep(1)  # the cell is stopped and given back; Slurm kills and requeues
            raise


def preempted(job: str) -> bool:
    """Whether Slurm is about to kill and requeue a running job. False while it does not answer."""
    asked = ["scontrol", "show", "job", job]
    try:
        answer = subprocess.run(
            asked, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    said = dict(re.findall(r"(\S+?)=(\S+)", answer.stdout))
    return said.get("Requeue") == "1" and said.get("PreemptTime", "None") not in ("None", "Unknown")


class _Queue:
    """What squeue says, asked once in a while."""

    def __init__(self) -> None:
        self._at = float("-inf")
        self._asked: set[str] = set()
        self._found: set[str] = set()

    def holds(self, jobs: list[str]) -> list[bool]:
        """Whether each job runs or waits. While squeue does not answer, all of them do.

        All jobs of the user are asked for, not one by one: of one that has ended, squeue knows
        nothing after some minutes and answers with an error.
        """
        if time.monotonic() - self._at >= SECONDS_BETWEEN:
            self._at, self._asked = time.monotonic(), set(jobs)
            asked = ["squeue", "--me", "--noheader", "--format=%A"]
            try:
                answer = subprocess.run(
                    asked, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
                )
                self._found = set(answer.stdout.split())
            except (OSError, subprocess.SubprocessError):
                self._found = set(jobs)
        return [job in self._found or job not in self._asked for job in jobs]


def _are(names: list[str]) -> str:
    return "are" if len(names) > 1 else "is"


LAUNCHER = Launcher("slurm", "slurm", Options, start)
