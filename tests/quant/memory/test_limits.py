"""What memory is free here: limits of the machine, of control groups and of the process."""

from pathlib import Path

import pytest
import torch

from quant.memory import limits as memory_limits
from quant.memory.limits import free_host_memory, free_memory


def test_limits_of_control_groups_and_the_process_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tmp_path / "cgroup"
    monkeypatch.setattr(memory_limits, "_CGROUPS", names)
    group = tmp_path / "jobs" / "mine"
    group.mkdir(parents=True)
    found = memory_limits._control_groups
    names.write_text("0::/jobs/mine\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("700\n")
    assert list(found(tmp_path)) == []
    (group.parent / "memory.max").write_text("1000\n")
    (group.parent / "memory.current").write_text("800\n")
    (group.parent / "memory.stat").write_text("anon 5\ninactive_file 60\n")
    assert list(found(tmp_path)) == [260]
    old = tmp_path / "memory" / "box"
    old.mkdir(parents=True)
    names.write_text("4:memory:/box\n3:cpuset:/\n0::/\n")
    (old / "memory.limit_in_bytes").write_text("5000\n")
    (old / "memory.usage_in_bytes").write_text("1500\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert list(found(tmp_path)) == [3500]


def test_a_resource_limit_lowers_what_is_free() -> None:
    import resource

    free = free_host_memory()
    assert free is not None
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, before[1]))
        assert free_host_memory() <= 300_000_000
        assert free_memory(torch.device("cpu"), Path("nowhere") / "yet").disk is not None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
