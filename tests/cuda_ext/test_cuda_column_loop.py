"""How CUDA runs the column loop: streams, graphs, wide blocks, two devices. Needs a GPU."""

import pytest
import torch

from cuda_ext.column_loop import gptq_column_loop
from tests.oracles.column_blocks import SCHEMES, block
from tests.oracles.packed_layers import poison

pytestmark = pytest.mark.gpu
# One group a row, 300 rows: more than four thread blocks, the last one not full.
ROWS = 300
# 128 columns fit what every launch gets; 300 need shared memory that is asked for.
WIDTHS = (128, 300)


def column_loop(weight, upper, grids, scheme=SCHEMES[0]):
    """Codes, errors and weights after all columns of `weight`, which is kept."""
    work = weight.clone()
    codes, errors = gptq_column_loop(
        work,
        upper,
        grids["scale"],
        grids.tensors.get("zero"),
        negative=grids.tensors.get("negative_scale"),
        count=len(weight),
        max_code=scheme.max_code,
    )
    return codes, errors, work


def same(found, expected):
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[-1]], ids=["uniform", "ternary"])
def test_the_bits_of_the_cpu_a_hundred_times(cuda, columns, scheme):
    on_cpu = block(columns, ROWS, 1, scheme)
    expected = column_loop(*on_cpu, scheme)
    on_cuda = block(columns, ROWS, 1, scheme, device=cuda)
    for _ in range(100):
        assert same(column_loop(*on_cuda, scheme), expected)


def test_work_is_queued_on_the_current_stream(cuda):
    """The weight is written by the same stream, behind a long wait."""
    weight, upper, grids = block(128, ROWS, device=cuda)
    expected, late = column_loop(weight, upper, grids), torch.zeros_like(weight)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(weight)
        found = column_loop(late, upper, grids)
    assert not stream.query(), "the sleep was too short for this test"
    stream.synchronize()
    assert same(found, expected)


@pytest.mark.parametrize("columns", WIDTHS)
def test_captured_in_a_graph(cuda, columns):
    """Replayed over new weights, with free memory full of NaN."""
    weight, upper, grids = block(columns, ROWS, device=cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        column_loop(weight, upper, grids)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = column_loop(weight, upper, grids)
    for seed in range(1, 4):
        fresh = block(columns, ROWS, seed=seed, device=cuda)[0]
        weight.copy_(fresh)
        poison(cuda)
        graph.replay()
        assert same(found, column_loop(fresh, upper, grids))


def test_a_block_too_wide_for_shared_memory_is_refused(cuda):
    most = torch.cuda.get_device_properties(cuda).shared_memory_per_block_optin // (65 * 4)
    weight, upper, grids = block(most + 1, 5, device=cuda)
    with pytest.raises(RuntimeError, match=f"use blocks of at most {most} columns"):
        column_loop(weight, upper, grids)
    # And the widest that fits runs: nothing sticks in the context.
    expected = column_loop(*block(most, 5))
    assert same(column_loop(*block(most, 5, device=cuda)), expected)


def test_mixed_devices_are_named(cuda):
    weight, upper, grids = block(8, 20, device=cuda)
    with pytest.raises(RuntimeError, match="upper is on cpu and weight on cuda:0; move them"):
        column_loop(weight, upper.cpu(), grids)
    with pytest.raises(RuntimeError, match="upper is on cuda:0 and weight on cpu; move them"):
        column_loop(weight.cpu(), upper, grids)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu_is_used_and_the_first_stays_current(cuda):
    expected = column_loop(*block(128, ROWS))
    assert same(column_loop(*block(128, ROWS, device="cuda:1")), expected)
    assert torch.cuda.current_device() == 0
