"""How CUDA runs the kernels: streams, graphs, compilation, many launches. Needs a GPU."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from tests.oracles.packed_layers import BITS, Layer, check_error, poison, random_x

pytestmark = pytest.mark.gpu
BATCHES = (1, 8, 17, 64)


@pytest.fixture(params=BITS)
def layer(request: pytest.FixtureRequest, cuda: str) -> Layer:
    """Wide and long enough that the work of a launch is shared between multiprocessors."""
    return Layer(request.param, 4096, 1032, 128, cuda)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_thousand_launches_are_bit_identical(
    layer: Layer, batch: int, dtype: torch.dtype
) -> None:
    x = random_x(batch, 4096, dtype, "cuda")
    check_error(layer, x)
    first = layer.linear(x)
    for _ in range(10):
        results = [layer.linear(x) for _ in range(100)]
        assert all(torch.equal(y, first) for y in results)


@pytest.mark.parametrize("batch", BATCHES)
def test_streams_beside_each_other(layer: Layer, batch: int) -> None:
    """Launches on several streams at once have each its own workspace and all the same result."""
    x = random_x(batch, 4096, torch.float16, "cuda")
    expected = layer.linear(x)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(layer.linear(x))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected) for y in results)


def test_work_is_queued_on_the_current_stream(layer: Layer) -> None:
    """x is written by the same stream, behind a long wait: a kernel elsewhere would see zeros."""
    x = random_x(4, 4096, torch.float16, "cuda")
    expected, late = layer.linear(x), torch.zeros_like(x)
    layer.dequantize()  # the first launch of a kernel loads it, which may wait for the device
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(x)
        y = layer.linear(late)
        weight = layer.dequantize()
        tiles = torch.ops.bitsweep.repack(layer.qweight, layer.bits, 4096)
    assert not stream.query(), "the sleep was too short for this test"
    stream.synchronize()
    assert torch.equal(y, expected)
    assert torch.equal(weight, layer.weight)
    assert torch.equal(tiles, layer.packed.tiles)


@pytest.mark.parametrize("batch", [*BATCHES, 65])
def test_captured_in_a_graph(layer: Layer, batch: int) -> None:
    """Replayed over new inputs, with free memory full of NaN.

    65 rows are multiplied by torch, which may choose another algorithm inside a graph.
    """
    same = torch.equal if batch <= 64 else partial(torch.allclose, rtol=1e-2, atol=1e-1)
    x = random_x(batch, 4096, torch.float16, "cuda")
    bias = torch.ones(1032, dtype=torch.float16, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        layer.linear(x, bias)
        layer.linear(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer.linear(x, bias)
        z = layer.linear(x) + y
    for seed in range(3):
        fresh = random_x(batch + seed, 4096, torch.float16, "cuda")[:batch]
        x.copy_(fresh)
        poison("cuda")
        graph.replay()
        assert same(y, layer.linear(fresh, bias))
        assert same(z, layer.linear(fresh) + y)


def test_compiled_by_inductor(layer: Layer) -> None:
    x = random_x(4, 4096, torch.float16, "cuda")
    compiled = torch.compile(lambda x: functional.relu(layer.linear(x * 2)), fullgraph=True)
    torch.testing.assert_close(compiled(x), layer.linear(x * 2).relu())


def test_a_kernel_error_is_not_left_behind(layer: Layer) -> None:
    """After a refused call the next one works: nothing sticks in the context."""
    x = random_x(1, 4096, torch.float16, "cuda")
    with pytest.raises(RuntimeError, match="tiles is"):
        layer.linear(x[:, :2048])
    check_error(layer, x)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu_is_used_and_the_first_stays_current(cuda: str) -> None:
    layer = Layer(4, 4096, 1032, 128, "cuda:1")
    check_error(layer, random_x(4, 4096, torch.float16, "cuda:1"))
    assert torch.cuda.current_device() == 0
