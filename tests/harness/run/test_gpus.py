"""Workers get as many GPUs as a cell spreads its model over."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.launchers import local, ray, slurm
from harness.launchers.base import LaunchError, gpus_of_worker


def test_a_worker_of_slurm_asks_for_them() -> None:
    assert slurm._parameters(slurm.Options(), 5)["gpus_per_node"] == 5
    assert slurm._parameters(slurm.Options(gpus=8), 5)["gpus_per_node"] == 8
    assert slurm._parameters(slurm.Options(), 1)["gpus_per_node"] == 1
    assert "gpus_per_node" not in slurm._parameters(slurm.Options(), 0)


def test_an_actor_of_ray_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ray.subprocess, "Popen", lambda words, **_: asked.append(words[-1]))
    for options, gpus in ((ray.Options(), 4), (ray.Options(gpus=0.5), 1), (ray.Options(), 0)):
        ray.LAUNCHER.start(tmp_path, 2, options, gpus)
    assert ['"gpus": 4,' in asked[0], '"gpus": 0.5,' in asked[1], '"gpus": 0,' in asked[2]] == (
        [True] * 3
    )


def test_processes_of_this_machine_share_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    assert local._shares(3, 2) == [[0, 1], [2, 3], [4, 5]]
    assert local._shares(2, 1) == [[0], [1]]
    assert local._shares(2, 0) == [[], []]
    with pytest.raises(LaunchError) as refused:
        local._shares(4, 2)
    assert str(refused.value) == (
        "hydra.launcher.workers=4 needs 2 GPUs for each worker, and 7 can be seen here: use "
        "hydra.launcher.workers=3 or a smaller runtime.devices."
    )


def test_fewer_than_a_model_is_spread_over_are_refused() -> None:
    with pytest.raises(LaunchError, match=r"hydra.launcher.gpus=1 is fewer than the 4 GPUs"):
        gpus_of_worker(1, 4)
    assert gpus_of_worker(None, 4) == 4


def test_the_sweep_asks_for_what_its_cells_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell that needs most, of those that are not done."""
    from harness.run import launched

    plans = [
        SimpleNamespace(todo=todo, cell=SimpleNamespace(devices=SimpleNamespace(gpus=gpus)))
        for todo, gpus in ((["latency"], 2), (["latency"], 4), ([], 8))
    ]
    assert launched.gpus_needed(plans) == 4  # type: ignore[arg-type]
