"""The emulator of the CUDA kernels: does it notice what it is there to notice?"""

import shutil

import pytest
import torch

from tests.oracles import emulated_cuda as emulated

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ for the emulator")
ORDERS = (0, 1, 2, 3)
VALUES = torch.arange(256, dtype=torch.float32)


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_is_right_in_every_order(order: int) -> None:
    emulated.use_device(emulated.H200, order)
    reversed_fours = VALUES.view(64, 4).flip(0).flatten()
    assert torch.equal(emulated.run_defect(0, VALUES), reversed_fours)


def test_what_nobody_has_written_is_nan() -> None:
    emulated.use_device(emulated.H200)
    assert bool(emulated.run_defect(10, VALUES)[:64].isnan().all())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(1, id="no-barrier-between-warps"),
        pytest.param(2, id="no-wait-within-a-warp"),
        pytest.param(3, id="copy-not-awaited"),
        pytest.param(11, id="overwritten-while-read"),
    ],
)
def test_a_race_is_one_in_every_order(kind: int, order: int) -> None:
    emulated.use_device(emulated.H200, order)
    with pytest.raises(emulated.EmulatedError, match="races with thread"):
        emulated.run_defect(kind, VALUES)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (4, "the lanes of warp 0 are not together"),
        (5, "wait for each other at barriers that nobody completes"),
        (6, "touches memory that is not its own"),
        (7, "goes past the end of shared memory"),
        (8, "copies from an address that is not aligned"),
        (9, "goes past the end of shared memory"),
    ],
)
def test_a_wrong_kernel_ends_with_an_error(kind: int, message: str) -> None:
    emulated.use_device(emulated.H200)
    with pytest.raises(emulated.EmulatedError, match=message):
        emulated.run_defect(kind, VALUES)
    # and the next launch is none the worse
    emulated.use_device(emulated.H200)
    emulated.run_defect(0, VALUES)
