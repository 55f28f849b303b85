"""The packed operators against float64 products of codes that never were packed."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_ext import build, kernels, ops, packed, toolchain
from cuda_ext.layout import BIT_WIDTHS, pack_codes

CASES = [
    pytest.param(
        bits, inputs, outputs, group, index, id=f"w{bits}-{inputs}x{outputs}g{group}{index}"
    )
    for (bits, (inputs, outputs, group)), index in itertools.product(
        itertools.product(BIT_WIDTHS, ((64, 32, None), (64, 24, 16), (40, 25, 8), (37, 5, None))),
        ("", "-scattered"),
    )
] + [
    pytest.param(4, 20, 6, 8, "", id="last-group-is-short"),
    pytest.param(5, 576, 6, 128, "", id="w5-576x6g128-last-group-is-short"),
]


def layer(
    bits: int, inputs: int, outputs: int, group: int | None, index: str = "", ternary: bool = False
) -> tuple[dict[str, Any], Tensor]:
    """Arguments of the operators and the float64 weight [out, in] that they stand for."""
    generator = torch.Generator().manual_seed(bits * inputs + outputs)
    size = group or inputs
    groups = -(-inputs // size)
    top = 3 if ternary else 2**bits
    codes = torch.randint(0, top, (inputs, outputs), dtype=torch.uint8, generator=generator)
    scales = (torch.rand(groups, outputs, generator=generator) + 0.1).half()
    column_group = torch.arange(inputs) // size
    arguments: dict[str, Any] = {"bits": bits, "group_size": group}
    if index:
        column_group = column_group[torch.randperm(inputs, generator=generator)]
        arguments["g_idx"] = column_group.int()
    scale = scales.double()[column_group]
    if ternary:
        negative = (torch.rand(groups, outputs, generator=generator) + 0.1).half()
        arguments["scales_negative"] = negative
        table = torch.stack([-negative.double()[column_group], torch.zeros_like(scale), scale])
        weight = table.gather(0, codes.long()[None])[0]
    else:
        zeros = torch.randint(0, top, (groups, outputs), dtype=torch.uint8, generator=generator)
        arguments["qzeros"] = pack_codes(zeros, bits)
        weight = scale * (codes.double() - zeros.double()[column_group])
    arguments |= {"qweight": pack_codes(codes, bits, dim=0), "scales": scales}
    return arguments, weight.t()


@pytest.mark.parametrize(("bits", "inputs", "outputs", "group", "index"), CASES)
def test_uniform(bits: int, inputs: int, outputs: int, group: int | None, index: str) -> None:
    arguments, weight = layer(bits, inputs, outputs, group, index)
    check(arguments, weight)


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("index", ["", "-scattered"])
def test_ternary(group: int | None, index: str) -> None:
    arguments, weight = layer(2, 40, 25, group, index, ternary=True)
    check(arguments, weight)


def check(arguments: dict[str, Any], weight: Tensor) -> None:
    outputs, inputs = weight.shape
    restored = ops.dequantize(in_features=inputs, **arguments)
    # float16 scale times an integer below 256 has at most 19 significant bits: exact in float32.
    assert restored.dtype == torch.float32
    assert restored.is_contiguous()
    assert torch.equal(restored.double(), weight)
    half = ops.dequantize(in_features=inputs, dtype=torch.bfloat16, **arguments)
    assert torch.equal(half, weight.to(torch.bfloat16))
    identity = torch.eye(inputs)
    assert torch.equal(ops.linear(identity, **arguments).double(), weight.t())
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5), (torch.float16, 1e-3)):
        x = torch.randn(2, 3, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)
        bias = torch.linspace(-1, 1, outputs, dtype=torch.float16)
        y = ops.linear(x, bias=bias, **arguments)
        expected = x.double() @ weight.t() + bias.double()
        assert y.dtype == dtype
        assert y.shape == (2, 3, outputs)
        scale = (x.double().abs() @ weight.t().abs()).max()
        assert float((y.double() - expected).abs().max() / scale) < tolerance


@pytest.mark.parametrize("ternary", [False, True])
def test_registration(ternary: bool) -> None:
    """torch's own check of an operator: schema, fake implementation, dynamic shapes."""
    arguments, _ = layer(2, 64, 24, 16, "-scattered" if ternary else "", ternary)
    buffers = [arguments.get(name) for name in ("scales", "qzeros", "scales_negative", "g_idx")]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.bitsweep.dequantize,
        (arguments["qweight"], *buffers, 2, 64, 16, torch.float16),
        test_utils=tests,
    )
    torch.library.opcheck(
        torch.ops.bitsweep.linear,
        (torch.randn(3, 64), arguments["qweight"], *buffers, torch.randn(24), 2, 16),
        test_utils=tests,
    )


def test_meta_tensors_have_the_right_shape() -> None:
    arguments, _ = layer(3, 40, 25, 8)
    meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}
    x = torch.empty(2, 40, device="meta", dtype=torch.bfloat16)
    assert ops.linear(x, **meta).shape == (2, 25)
    assert ops.linear(x, **meta).dtype == torch.bfloat16
    assert ops.dequantize(in_features=40, **meta).shape == (25, 40)


def test_torch_compile_traces_one_graph() -> None:
    """fullgraph: no graph break at the operator. aot_eager needs no compiler on the machine."""
    arguments, _ = layer(4, 64, 32, 16)

    def run(x: Tensor) -> Tensor:
        return ops.linear(x * 2, **arguments).relu()

    x = torch.randn(3, 64)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), run(x))


def bad(**changes: Any) -> dict[str, Any]:
    arguments, _ = layer(4, 64, 32, 16)
    return {"x": torch.zeros(1, 64), **arguments, **changes}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(bits=9), ValueError, "linear: bits=9 is not a bit width; choose one of 2 to 8"),
        (bad(bits=3), ValueError, r"qweight is \[8, 32\]; expected \[6, 32\]"),
        (bad(x=torch.zeros(1, 48)), ValueError, "48 inputs in groups of 16 make 3"),
        (bad(x=torch.zeros(1, 64).int()), TypeError, "x is torch.int32; pass one of float16"),
        (bad(x=torch.tensor(1.0)), ValueError, "x is a scalar"),
        (bad(x=torch.zeros(1, 64, device="meta")), ValueError, "x is on meta and qweight on cpu"),
        (bad(group_size=0), ValueError, "group_size=0"),
        (bad(group_size=None), ValueError, "scales have 4 groups, but 64 inputs in groups of 64"),
        (bad(qzeros=None), ValueError, "neither of qzeros .* and scales_negative"),
        (bad(scales_negative=torch.ones(4, 32).half()), ValueError, "both of qzeros"),
        (
            bad(scales_negative=torch.ones(4, 32).half(), qzeros=None),
            ValueError,
            "bits=4 with scales_negative",
        ),
        (bad(qzeros=torch.zeros(4, 4)), TypeError, "qzeros is torch.float32; pass int32"),
        (bad(bias=torch.zeros(31)), ValueError, r"bias is \[31\]; expected \[32\]"),
        (bad(g_idx=torch.zeros(64)), TypeError, "g_idx is torch.float32; pass int32"),
        (bad(scales=torch.ones(4, 32).int()), TypeError, "scales is torch.int32"),
        (bad(scales=torch.ones(4)), ValueError, r"scales are \[4\]; expected \[groups, out\]"),
    ],
)
def test_bad_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.linear(**arguments)


def test_dequantize_refuses_an_integer_dtype() -> None:
    arguments, _ = layer(4, 64, 32, 16)
    with pytest.raises(TypeError, match=r"dtype=torch.int8 is not one of float16"):
        ops.dequantize(in_features=64, dtype=torch.int8, **arguments)


def test_kernels() -> None:
    assert ops.resolve_kernel("reference") == "reference"
    assert ops.resolve_kernel("auto", "meta") == "reference"
    with pytest.raises(
        ops.KernelUnavailable, match=r"kernel='cuda' is not available.*kernel=reference"
    ):
        ops.resolve_kernel("cuda")
    with pytest.raises(ValueError, match="kernel='fast' is unknown"):
        ops.resolve_kernel("fast")


def test_auto_is_the_reference_where_nothing_can_be_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler() -> None:
        raise build.BuildError("no C++ compiler is on PATH; install one.")

    monkeypatch.setattr(packed, "load", no_compiler)
    kernels._say_once.cache_clear()
    with pytest.raises(ops.KernelUnavailable, match=r"kernel='cpu' .*no C.. compiler.*install one"):
        ops.resolve_kernel("cpu")
    assert ops.resolve_kernel("auto") == "reference"
    assert ops.resolve_kernel("auto") == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "kernel=auto uses the reference kernel on cpu: no C++ compiler is on PATH; install one."
    ]


def gpu_with(
    monkeypatch: pytest.MonkeyPatch, architectures: tuple[str, ...], without: str | None = None
) -> None:
    """A machine with one GPU of capability 9.0 and a library for these architectures."""
    library = build.Library(Path("/nowhere"), architectures, without)
    monkeypatch.setattr(toolchain, "visible_capabilities", lambda: ((9, 0),))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(packed, "load", lambda: library)


def test_auto_is_cuda_on_a_gpu_that_the_library_has_code_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu_with(monkeypatch, ("sm_90",))
    assert ops.resolve_kernel("auto", "cuda:0") == "cuda"
    assert ops.resolve_kernel("cuda", "cuda") == "cuda"
    assert ops.resolve_kernel("auto", "cpu") == "cpu"
    with pytest.raises(ops.KernelUnavailable, match="the layer is on cpu; move it to cuda"):
        ops.resolve_kernel("cuda", "cpu")
    with pytest.raises(ops.KernelUnavailable, match="the layer is on cuda:0; move it to cpu"):
        ops.resolve_kernel("cpu", "cuda:0")


@pytest.mark.parametrize(
    ("architectures", "without", "message"),
    [
        ((), "no nvcc: install the CUDA toolkit.", "has no CUDA part: no nvcc: install the CUDA"),
        ((), "nvcc failed: two.cu.", "has no CUDA part: nvcc failed"),
        (("sm_80", "sm_86"), None, r"no code for sm_90, .* only for sm_80, sm_86; build it with"),
    ],
)
def test_why_there_is_no_cuda_kernel(
    architectures: tuple[str, ...],
    without: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu_with(monkeypatch, architectures, without)
    with pytest.raises(ops.KernelUnavailable, match=message):
        ops.resolve_kernel("cuda", "cuda")
    kernels._say_once.cache_clear()
    assert ops.resolve_kernel("auto", "cuda") == "reference"


def test_no_gpu_is_the_reason_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "visible_capabilities", lambda: ())
    monkeypatch.setattr(packed, "load", lambda: pytest.fail("built for nothing"))
    with pytest.raises(ops.KernelUnavailable, match="no GPU: PyTorch sees no CUDA device here"):
        ops.resolve_kernel("cuda", "cuda")
