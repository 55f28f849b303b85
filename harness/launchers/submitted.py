"""Workers as jobs of submitit: on a Slurm cluster, or as processes of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.launchers.base import LaunchError


class Work:
    """What a job runs: submitit pickles it, and calls it again where a job is requeued."""

    def __init__(self, folder: Path | str, number: int, of: int) -> None:
        self.folder, self.number, self.of = str(folder), number, of

    def __call__(self) -> None:
        from harness.run.worker import work

        work(self.folder, self.number, self.of)

    def checkpoint(self) -> Any:
        """For submitit, before a job is requeued: the same again, as what is done is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Submitted:
    """Jobs of submitit, one a worker.

    submit  submits one job.
    runs    tells which of several jobs still run or wait in a queue.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        submit: Callable[[Work], Any],
        runs: Callable[[list[Any]], list[bool]],
    ) -> None:
        self._folder, self._count = folder, count
        self._submit_one, self._runs = submit, runs
        self._jobs = {}
        try:
            for number in range(count):
                self._jobs[number] = self._submit(number)
        except BaseException:  # an interrupt, too
            self.cancel()
            raise

    def ended(self) -> dict[int, str]:
        numbers, jobs = [*self._jobs], [*self._jobs.values()]
        alive = self._runs(jobs)
        return {
            n: _why(self._jobs[n]) for n, lives in zip(numbers, alive, strict=True) if not lives
        }

    def again(self, number: int) -> None:
        self._jobs[number] = self._submit(number)

    def cancel(self) -> None:
        for job in self._jobs.values():
            with contextlib.suppress(Exception):  # one that has ended, or a scheduler that is away
                job.cancel()

    def _submit(self, number: int) -> Any:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return self._submit_one(Work(self._folder, number, self._count))
        except (FailedJobError, FailedSubmissionError, OSError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise LaunchError(f"worker {number + 1} could not be submitted: {said}") from error


def _why(job: Any) -> str:
    """The last line of a job's error, or what its state says."""
    if job.paths.result_pickle.exists():
        error = job.exception()
        return "" if error is None else str(error).strip().splitlines()[-1]
    with contextlib.suppress(OSError):
        lines = job.paths.stderr.read_text(errors="replace").strip().splitlines()
        if lines:
            return f"it was killed, or ended without a word after: {lines[-1]}"
    return "it was killed"
