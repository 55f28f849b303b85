"""The emulator of the CUDA kernels: does it notice what it is there to notice?"""

import shutil

import emulated_cuda as emulated
import pytest
import torch

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ for the emulator")
ORDERS = (0, 1, 2, 3)
VALUES = torch.arange(256, dtype=torch.float32)


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_is_right_in_every_order(order: int) -> None:
    emulated.use_device(emulated.H200, order)
    reversed_fours = VALUES.view(64, 4).flip(0).flatten()
    assert torch.equal(emulated.run_defect(0, VALUES), reversed_fours)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        pytest.param(1, VALUES[:64].flip(0), id="no-barrier-between-warps"),
        pytest.param(2, VALUES[:64].view(32, 2).flip(1).flatten(), id="no-wait-within-a-warp"),
    ],
)
def test_a_race_gives_another_result_in_some_order(kind: int, expected: torch.Tensor) -> None:
    right = []
    for order in ORDERS:
        emulated.use_device(emulated.H200, order)
        right.append(torch.equal(emulated.run_defect(kind, VALUES)[:64], expected))
    assert not all(right)


@pytest.mark.parametrize("kind", [3, 10], ids=["copy-not-awaited", "never-written"])
def test_what_has_not_arrived_is_nan(kind: int) -> None:
    emulated.use_device(emulated.H200)
    assert bool(emulated.run_defect(kind, VALUES)[:64].isnan().all())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (4, "the lanes of warp 0 are not together"),
        (5, "wait for each other at barriers that nobody completes"),
        (6, "touches memory that is not its own"),
        (7, "touches memory that is not its own"),
        (8, "addresses that are not aligned"),
        (9, "copies past the end of shared memory"),
    ],
)
def test_a_wrong_kernel_ends_with_an_error(kind: int, message: str) -> None:
    emulated.use_device(emulated.H200)
    with pytest.raises(emulated.EmulatedError, match=message):
        emulated.run_defect(kind, VALUES)
    # and the next launch is none the worse
    emulated.use_device(emulated.H200)
    emulated.run_defect(0, VALUES)
