"""What a record says about the machine, and what it must not say."""

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_ext.packed import ISAS
from harness.records.environment import (
    commit,
    computing,
    environment,
    machine,
    package_versions,
)

ROOT = Path(__file__).resolve().parents[3]


def test_versions_machine_and_commit_are_there() -> None:
    found = environment(threads=2)
    assert found["packages"]["torch"].startswith("2.")
    assert found["python"] == platform.python_version()
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_gib"] >= 1
    assert found["threads"] == 2
    assert found["gpu"] is None


def test_what_rounds_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    found = computing()
    assert found is not None
    assert found["torch"] == torch.backends.cpu.get_cpu_capability()
    assert found["settings"]["MKL_CBWR"] == "COMPATIBLE"
    assert found["kernels"] in (None, *ISAS)
    if torch.backends.mkl.is_available():
        assert found["blas"].startswith("oneAPI Math Kernel Library Version 20")
    if torch.backends.mkldnn.is_available():
        assert found["onednn"].startswith("v3")
    if platform.libc_ver()[0]:
        assert found["libc"] == " ".join(platform.libc_ver())


def test_a_process_that_computes_nothing_loads_nothing_to_say_so() -> None:
    code = (
        "import sys; from harness.records.environment import environment; "
        "assert environment()['computing'] is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_names_of_people_hosts_or_folders() -> None:
    text = json.dumps(environment())
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert str(Path(__file__).parents[3]) not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


def test_the_commit_is_that_of_the_checkout() -> None:
    found = commit()
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        assert found is None
        return
    assert found is not None
    assert len(found["id"]) == 40
    assert isinstance(found["dirty"], bool)


def test_packages_that_are_not_installed_are_left_out() -> None:
    assert all(package_versions().values())
    assert machine() is machine(), "asked once"
