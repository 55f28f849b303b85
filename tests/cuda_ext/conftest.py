"""The devices that kernels run on: each instruction set of the CPU, and CUDA (marked gpu)."""

from collections.abc import Iterator
from contextlib import contextmanager

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
) -> Iterator[str]:
    """The device of a test, "cpu" (with an instruction set forced) or "cuda"."""
    kind, _, isa = request.param.partition("-")
    if kind == "cuda":
        _need_cuda()
        with full_sums():
            yield kind
        return
    force_isa(isa, monkeypatch)
    yield kind


@pytest.fixture(params=packed.ISAS)
def isa(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, library: build.Library
) -> str:
    """Every instruction set of the CPU, for what is there for the CPU alone."""
    force_isa(request.param, monkeypatch)
    return request.param


def force_isa(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    best = packed.cpu_isa()
    if packed.ISAS.index(isa) > packed.ISAS.index(best):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("BITSWEEP_CPU_ISA", isa)
    assert packed.cpu_isa() == isa


@pytest.fixture
def cuda() -> Iterator[str]:
    """For tests that only CUDA can run."""
    _need_cuda()
    with full_sums():
        yield "cuda"


def _need_cuda() -> None:
    reason = why_unavailable(torch.device("cuda"))
    if reason is not None:
        pytest.skip(f"no CUDA kernels: {reason}")


@contextmanager
def full_sums() -> Iterator[None]:
    """The yardstick is torch's best product of 16 bits: sums in float32 all the way."""
    matmul = torch.backends.cuda.matmul
    names = [f"allow_{name}_reduced_precision_reduction" for name in ("fp16", "bf16")]
    before = [getattr(matmul, name) for name in names]
    for name in names:
        setattr(matmul, name, False)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(matmul, name, value)
