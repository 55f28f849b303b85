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


def start(folder: Path, count: int, _options: Options, device: str) -> Submitted:
    """Start `count` processes; on GPUs, each sees one of this process's."""
    import submitit

    gpus = _gpus(count) if device.startswith("cuda") else []

    def submit(work: Work) -> Any:
        executor = submitit.LocalExecutor(folder / "jobs", max_num_timeout=0)
        visible = gpus[work.number : work.number + 1]
        executor.update_parameters(
            timeout_min=MINUTES, gpus_per_node=len(visible), visible_gpus=tuple(visible)
        )
        return executor.submit(work)

    return Submitted(folder, count, submit, lambda jobs: [job.state == "RUNNING" for job in jobs])


def _gpus(count: int) -> list[int]:
    """Numbers of GPUs for `count` workers. Raises LaunchError if there are fewer."""
    import torch

    found = torch.cuda.device_count()
    if found < count:
        raise LaunchError(
            f"hydra.launcher.workers={count} needs a GPU for each worker, and {found} can be seen "
            f"here: use hydra.launcher.workers={max(1, found)}."
        )
    return list(range(count))


LAUNCHER = Launcher("local", "slurm", Options, start, elsewhere=False)
