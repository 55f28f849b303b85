"""The real CUDA sources through the real nvcc, on a machine that may have no GPU."""

import contextlib
import os
import subprocess
import sys

import pytest

from cuda_ext import build, toolchain

# Built, loaded and used as a user would; a process of its own, since a process loads one library.
SCRIPT = """
import ctypes
import torch
from cuda_ext import ops, packed
from tests.oracles.packed_layers import Layer, check_error, random_x

library = packed.load()
assert library.architectures == ("sm_90",), library
for name in ("packed_linear", "packed_dequantize", "repack", "gptq_column_loop"):
    found = torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsweep::{name}", "CUDA")
    assert found, f"{name} has no CUDA implementation"
# The runtime inside stays hidden: a CUDA build of torch brings its own copy of these names.
if torch.version.cuda is None:
    assert not hasattr(ctypes.CDLL(str(library.path)), "cudaGetDevice")
layer = Layer(3, 640, 21, 128)
check_error(layer, random_x(5, 640))
assert torch.equal(layer.dequantize(), layer.weight)

# The CUDA implementation itself, with tensors that it cannot take: its checks and its last word.
def on_cuda(**changes):
    held = layer.packed
    values = dict(x=random_x(5, 640), tiles=held.tiles, scales=held.scales, zeros=held.zeros,
                  negative=None, bias=None, bits=3, out_features=21, group_size=128) | changes
    product = torch.ops.bitsweep.packed_linear.default
    try:
        product._op_dk(torch._C.DispatchKey.CUDA, *values.values())
    except RuntimeError as error:
        return str(error)

assert "bits=5 is not a bit width" in on_cuda(bits=5)
assert "bias is [20]; expected [21]" in on_cuda(bias=torch.zeros(20))
assert torch.version.cuda or "this torch has no CUDA" in on_cuda(), on_cuda()

def loop_on_cuda(**changes):
    values = dict(weight=torch.ones(4, 3), upper=torch.eye(4), scale=torch.ones(1, 3),
                  zero=torch.zeros(1, 3), negative=None, group=None, count=4, max_code=3) | changes
    try:
        operator = torch.ops.bitsweep.gptq_column_loop.default
        operator._op_dk(torch._C.DispatchKey.CUDA, *values.values())
    except RuntimeError as error:
        return str(error)

assert "gptq_column_loop: upper is [3, 3]; expected [4, 4]" in loop_on_cuda(upper=torch.eye(3))
assert torch.version.cuda or "gptq_column_loop: this torch has no CUDA" in loop_on_cuda()
print(ops.resolve_kernel("auto", "cpu"), ops.resolve_kernel("auto", "cuda"))
print(ops.why_unavailable(torch.device("cuda")))
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """A cache of its own, kept between runs: an nvcc build beside it would serve everyone else.

    It shares the objects of the C++ sources, which are most of the work.
    """
    try:
        toolchain.find_compiler()
        toolchain.find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))
    own = build.cache_folder().parent / "nvcc-test"
    shared = build.cache_folder() / "objects"
    for folder in (shared, own / "kernels"):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (own / "kernels" / "objects").symlink_to(shared)
    return {
        **os.environ,
        "BITSWEEP_CACHE": str(own),
        "BITSWEEP_CUDA_ARCHS": "sm_90",
        # No kernel runs on a GPU here: nvcc need not make them fast, which is most of its time.
        # Without any optimization ptxas would have so much more to assemble that it takes longer.
        "NVCC_APPEND_FLAGS": "-Xcicc -O1 -Xptxas -O0",
    }


@pytest.mark.slow
def test_a_library_with_cuda_offers_its_cpu_kernels(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    chosen, reason = done.stdout.splitlines()
    if toolchain.visible_capabilities():
        assert (chosen, reason) == ("cpu cuda", "None")
    else:
        assert chosen == "cpu reference"
        assert reason.startswith("no GPU: PyTorch sees no CUDA device here")
