"""Work that threads share (csrc/shares.h): every item once, one's own part first."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from cuda_ext import toolchain

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    try:
        compiler = toolchain.find_compiler()
    except toolchain.BuildError as error:
        pytest.skip(str(error))
    made = tmp_path_factory.mktemp("shares") / "shares.so"
    flags = ("-std=c++20", "-O2", "-shared", "-fPIC", "-pthread")
    source = HERE / "shares_by_threads.cpp"
    command = (compiler, *flags, "-I", str(toolchain.SOURCES), str(source), "-o", str(made))
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(made))


def shares_of(
    library: ctypes.CDLL, count: int, parts: int, least: int, thread: int
) -> list[tuple[int, int]]:
    out = torch.zeros((count + parts, 2), dtype=torch.int64)
    words = [ctypes.c_int64(value) for value in (count, parts, least, thread)]
    found = library.shares_of(*words, ctypes.c_void_p(out.data_ptr()))
    return [(int(first), int(end)) for first, end in out[:found]]


@pytest.mark.parametrize("idle", [0, 1])
@pytest.mark.parametrize(
    ("count", "parts", "least", "threads"),
    [
        (1, 1, 1, 1),
        (1, 2, 1, 2),
        (7, 2, 3, 2),
        (3, 16, 1, 16),
        (1000, 2, 1, 2),
        (1000, 3, 64, 3),
        (100_000, 4, 1, 8),  # threads of the same part
        (4097, 16, 2, 40),
        (50, 2, 1000, 2),  # a part is less than a share
    ],
)
def test_every_item_is_taken_once(library, count, parts, least, threads, idle) -> None:
    for _ in range(20):
        taken = torch.zeros(count, dtype=torch.int32)
        words = [ctypes.c_int64(value) for value in (count, parts, least, threads, idle)]
        library.take_all(*words, ctypes.c_void_p(taken.data_ptr()))
        assert taken.tolist() == [1] * count


def test_a_thread_takes_its_own_part_in_order_and_then_those_of_others(library) -> None:
    found = shares_of(library, 32, 2, 1, 1)
    own = [(16, 24), (24, 28), (28, 30), (30, 31), (31, 32)]
    assert found == [*own, *((first - 16, end - 16) for first, end in own)]


def test_shares_are_not_smaller_than_what_is_worth_a_thread(library) -> None:
    assert shares_of(library, 40, 2, 6, 0) == [
        *((0, 10), (10, 16), (16, 20)),  # what is left of a part may be less
        *((20, 30), (30, 36), (36, 40)),
    ]


def test_one_part_is_one_share(library) -> None:
    assert shares_of(library, 100, 1, 1, 0) == [(0, 100)]
