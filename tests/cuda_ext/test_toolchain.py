"""Compilers and GPU architectures: what is found, and which code runs where."""

from pathlib import Path

import pytest

from cuda_ext import toolchain
from cuda_ext.toolchain import ALL_ARCHITECTURES, BuildError, covers


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 6), True),  # machine code runs on later minor versions
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),  # and not on the next major version
        (("compute_80",), (8, 9), True),  # where PTX does
        (("compute_90",), (12, 0), True),
        (("compute_80",), (9, 0), False),  # whose launches overlap
        (("compute_90",), (8, 9), False),
        (("sm_90a",), (9, 0), True),
        (("compute_90a",), (10, 0), False),
        (("sm_100",), (10, 0), True),
        (ALL_ARCHITECTURES, (12, 1), True),
        (ALL_ARCHITECTURES, (7, 5), False),
        ((), (9, 0), False),
    ],
)
def test_which_code_runs_on_which_gpu(
    architectures: tuple[str, ...], capability: toolchain.Capability, expected: bool
) -> None:
    assert covers(architectures, capability) is expected


def test_architectures_for_the_gpus_here(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "--list-gpu-code": frozenset({"sm_80", "sm_90"}),
        "--list-gpu-arch": frozenset({"compute_80", "compute_90"}),
    }
    monkeypatch.setattr(toolchain, "_listed", lambda nvcc, option: known[option])
    assert toolchain.architectures_for([(8, 0), (9, 0)], "nvcc") == ("sm_80", "sm_90")
    assert toolchain.architectures_for([(12, 0)], "nvcc") == ("compute_90",)  # newer than nvcc
    assert toolchain.architectures_for([(7, 5)], "nvcc") == ()  # too old for the kernels


def test_where_nvcc_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert toolchain.find_nvcc() == str(program)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PATH", str(program.parent))
    assert toolchain.find_nvcc() == str(program)
    monkeypatch.setenv("NVCC", "nvcc-of-nowhere")
    with pytest.raises(BuildError, match="NVCC=nvcc-of-nowhere is not a program here"):
        toolchain.find_nvcc()
    monkeypatch.delenv("NVCC")
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    with pytest.raises(BuildError, match=r"no nvcc: .* install the CUDA toolkit"):
        toolchain.find_nvcc()


def test_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without architectures nothing of csrc/cuda; with them, all of it by nvcc."""
    cpu = toolchain.units("g++", None, ())
    assert {unit.source for unit in cpu} >= {"ops.cpp", "cpu/portable.cpp"}
    assert not any(unit.source.startswith("cuda/") for unit in cpu)
    both = toolchain.units("g++", "nvcc", ("sm_90", "compute_90"))
    for_gpu = [unit for unit in both if unit.source.startswith("cuda/")]
    assert "cuda/ops.cpp" in {unit.source for unit in for_gpu}
    assert all(unit.command[0] == "nvcc" for unit in for_gpu)
    assert "arch=compute_90,code=compute_90" in for_gpu[0].command
    assert [unit for unit in both if unit not in for_gpu] == cpu


def test_sources_use_no_name_that_an_older_torch_lacks() -> None:
    """The library is built with the headers of the torch that is here, from 2.10 on."""
    newer = ("STABLE_TORCH_ERROR_CODE_CHECK",)  # 2.13; TORCH_ERROR_CODE_CHECK is in all of them
    for path in toolchain.SOURCES.rglob("*.*"):
        used = [name for name in newer if name in path.read_text()]
        assert not used, f"{path.name} uses {used}, which torch 2.10 to 2.12 do not have"
