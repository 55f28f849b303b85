"""Workers as processes of this machine, by submitit's local executor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.launchers.base import Launcher, LaunchError
from harness.launchers.submitted import Submitted, Work

MINUTES = 60 * 24 * 365  # submitit ends local jobs after five if it is not told


@dataclass(frozen=True)
class Options:
    """conf/hydra/launcher/local.yaml says what they are."""

    workers: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"hydra.launcher.workers={self.workers} is too small; use 1 or more.")


def start(folder: Path, count: int, _options: Options, gpus: int) -> Submitted:
    """Start `count` processes; on GPUs, each sees as many of this process's as a cell needs."""
    import submitit

    shares = _shares(count, gpus)

    def submit(work: Work) -> Any:
        executor = submitit.LocalExecutor(folder / "jobs", max_num_timeout=0)
        visible = shares[work.number]
        executor.update_parameters(
            timeout_min=MINUTES, gpus_per_node=len(visible), visible_gpus=tuple(visible)
        )
        return executor.submit(work)

    return Submitted(folder, count, submit, lambda jobs: [job.state == "RUNNING" for job in jobs])


def _shares(count: int, gpus: int) -> list[list[int]]:
    """Numbers of the GPUs of each worker. Raises LaunchError if there are fewer."""
    if not gpus:
        return [[] for _ in range(count)]
    import torch

    found = torch.cuda.device_count()
    if found < count * gpus:
        each = "a GPU" if gpus == 1 else f"{gpus} GPUs"
        raise LaunchError(
            f"hydra.launcher.workers={count} needs {each} for each worker, and {found} can be seen "
            f"here: use hydra.launcher.workers={max(1, found // gpus)}"
            + (" or a smaller runtime.devices." if gpus > 1 else ".")
        )
    return [list(range(gpus * number, gpus * (number + 1))) for number in range(count)]


LAUNCHER = Launcher("local", "slurm", Options, start, elsewhere=False)
