"""What `bitsweep doctor` says of the kernels: what was found and built, and the reason if not."""

from pathlib import Path

import pytest
import torch

from cuda_ext import build, ops, packed, toolchain
from harness import doctor


def instruction_set(missing: dict[str, str]) -> str:
    """What packed.cpu_isa does: it loads the library, and cannot where there is none."""
    if reason := missing.get("cpu"):
        raise toolchain.BuildError(reason)
    return "avx2"


def kernel_lines(
    monkeypatch: pytest.MonkeyPatch,
    library: build.Library | None,
    missing: dict[str, str],
    driver: str | None,
) -> dict[str, str]:
    """The lines by name, on a machine that has this library and lacks these kernels."""
    status = build.Status(library, "not built yet.", "/usr/bin/g++ (12)", "no nvcc.", Path("/c"))
    monkeypatch.setattr(build, "status", lambda: status)
    monkeypatch.setattr(packed, "cpu_isa", lambda: instruction_set(missing))
    monkeypatch.setattr(toolchain, "driver", lambda: driver)
    monkeypatch.setattr(ops, "why_unavailable", lambda device: missing.get(device.type))
    found = doctor._kernels()
    assert all(good for good, _, _ in found)  # no kernel is needed: the reference runs everywhere
    return {name: f"{doctor._mark(good, text)} {text}" for good, name, text in found}


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    library = build.Library(Path("/cache/abc/lib.so"), (), "it was built where no GPU was seen.")
    assert kernel_lines(monkeypatch, library, {"cuda": "no GPU."}, None) == {
        "kernel auto": "ok cpu on cpu",
        "kernel cpu": "ok instruction set avx2",
        "kernel cuda": "- not here: no GPU.",
        "kernel reference": "ok plain PyTorch",
        "compiler": "ok /usr/bin/g++ (12)",
        "nvcc": "- no nvcc.",
        "driver": "- no NVIDIA driver (libcuda.so.1)",
        "library": "ok /cache/abc",
        "built for": "ok CPU alone: it was built where no GPU was seen.",
    }


def test_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    library = build.Library(Path("/cache/abc/lib.so"), ("sm_80", "sm_90"), None)
    found = kernel_lines(monkeypatch, library, {}, "13.0")
    assert found["kernel auto"] == "ok cuda on cuda"
    assert found["kernel cuda"] == "ok float16 and bfloat16"
    assert found["driver"] == "ok CUDA 13.0"
    assert found["built for"] == "ok sm_80, sm_90"


def test_a_machine_without_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    missing = {"cpu": "no C++ compiler; install one.", "cuda": "no GPU."}
    found = kernel_lines(monkeypatch, None, missing, None)
    assert found["kernel auto"] == "ok reference on cpu"
    assert found["kernel cpu"] == "- not here: no C++ compiler; install one."
    assert found["library"] == "- not built yet."
