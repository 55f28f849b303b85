"""The devices that kernels run on: each instruction set of the CPU, and CUDA (marked gpu)."""

import pytest
import torch

from cuda_ext import build, packed
from cuda_ext.ops import why_unavailable
from cuda_ext.toolchain import BuildError, find_compiler

CPU_DEVICES = [f"cpu-{isa}" for isa in packed.ISAS]


@pytest.fixture
def library() -> build.Library:
    """The compiled library; without a C++ compiler there is none, and test_build says so."""
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(f"no kernels here: {error}")
    return packed.load()


@pytest.fixture(params=[*CPU_DEVICES, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, library: build.Library
) -> str:
    """The device of a test, "cpu" (with an instruction set forced) or "cuda"."""
    kind, _, isa = request.param.partition("-")
    if kind == "cuda":
        return _cuda(monkeypatch)
    best = packed.cpu_isa()
    if packed.ISAS.index(isa) > packed.ISAS.index(best):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("BITSWEEP_CPU_ISA", isa)
    assert packed.cpu_isa() == isa
    return kind


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> str:
    """For tests that only CUDA can run."""
    return _cuda(monkeypatch)


def _cuda(monkeypatch: pytest.MonkeyPatch) -> str:
    reason = why_unavailable(torch.device("cuda"))
    if reason is not None:
        pytest.skip(f"no CUDA kernels: {reason}")
    # The yardstick is torch's best float16 product: sums in float32 all the way.
    matmul = torch.backends.cuda.matmul
    monkeypatch.setattr(matmul, "allow_fp16_reduced_precision_reduction", False)
    monkeypatch.setattr(matmul, "allow_bf16_reduced_precision_reduction", False)
    return "cuda"
