"""Memory of its own: the same values, aligned, and gone with the tensor."""

from multiprocessing.connection import Connection

import pytest
import torch

from quant.calibrate.cost import _resident_bytes
from quant.memory import heaps as allocator
from quant.memory.heaps import LARGE, OWN, keep_freed_memory, own_copy, own_zeros, trim_heap
from tests.quant.killing import CONTEXT

MEBIBYTE = 1 << 20


@pytest.fixture(params=["glibc", "another C library"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "glibc":
        monkeypatch.setattr(allocator, "_glibc", lambda: None)
    elif allocator._glibc() is None:
        pytest.skip("the C library here is not glibc")
    return request.param


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (OWN // 4,), (513, 257, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_a_copy_has_the_values_and_no_memory_of_the_original(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    original = torch.randint(-9, 9, shape).to(dtype)
    kept = original.clone()
    copy = own_copy(original)
    assert (copy.shape, copy.dtype, copy.is_contiguous()) == (shape, dtype, True)
    original.fill_(1)
    assert torch.equal(copy, kept)
    copy.fill_(2)  # it may be written to
    assert own_copy(copy.t() if copy.dim() == 2 else copy, torch.float64).dtype == torch.float64
    assert copy.numel() == 0 or copy.data_ptr() % 64 == 0


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("size", [1, OWN // 4 + 1])
def test_zeros_are_zeros(size: int) -> None:
    zeros = own_zeros((2, size), torch.float32)
    assert zeros.shape == (2, size)
    assert not zeros.any()


def test_without_glibc_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    keep_freed_memory.cache_clear()
    try:
        assert keep_freed_memory() is False
        trim_heap()
    finally:
        keep_freed_memory.cache_clear()


def test_where_nothing_can_be_mapped_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(allocator.mmap, "mmap", full)
    assert own_copy(torch.ones(OWN)).sum() == OWN
    with pytest.raises(RuntimeError, match=r"allocate \d+ bytes"):
        own_zeros((1 << 60,), torch.uint8)


def test_memory_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(allocator, "trim_heap", lambda: given.append(True))
    with pytest.raises(KeyError), allocator.memory_kept():
        raise KeyError
    assert given == [True]


def _resident_after_each_step(results: Connection) -> None:
    """In a fresh process: what is resident after taking, freeing and giving back."""
    torch.set_num_threads(1)
    torch.ones(8).add_(1)
    kept = keep_freed_memory()
    start, found = _resident_bytes(), {}
    own = own_zeros((40 * MEBIBYTE,), torch.uint8)
    found["own, untouched"] = _resident_bytes() - start
    own.fill_(1)
    found["own, written"] = _resident_bytes() - start
    del own
    found["own, freed"] = _resident_bytes() - start
    heap = torch.ones(LARGE // 2, dtype=torch.uint8)
    behind = torch.ones(1000, dtype=torch.uint8)  # lies above it in the heap
    del heap
    found["heap, freed"] = _resident_bytes() - start
    trim_heap()
    found["heap, given back"] = _resident_bytes() - start
    results.send((kept, found, len(behind)))


def test_heaps_keep_what_is_freed_and_own_memory_leaves() -> None:
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_resident_after_each_step, args=(there,))
    process.start()
    there.close()
    kept, found, _ = here.recv()
    process.join(60)
    if not kept:
        pytest.skip("the C library here is not glibc")
    mebibytes = {name: round(count / MEBIBYTE) for name, count in found.items()}
    assert mebibytes["own, written"] >= 39
    assert mebibytes["heap, freed"] >= LARGE // 2 // MEBIBYTE - 1
    for name in ("own, untouched", "own, freed", "heap, given back"):
        assert mebibytes[name] <= 3, mebibytes
