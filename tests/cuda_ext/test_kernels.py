"""The compiled kernels against float64 products of the weight that the packed bytes stand for.

Every test takes the device and, on the CPU, each instruction set; CUDA joins DEVICES.
"""

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cuda_ext import build, packed, reference
from cuda_ext.layout import pack_codes
from cuda_ext.tiles import tile_codes

BITS = (2, 3, 4, 8)
BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 192, 193, 513)
DEVICES = [f"cpu-{isa}" for isa in packed.ISAS]
# Ragged outputs; inputs of whole chunks, of parts of one, and of no whole block.
SHAPES = [
    pytest.param(1024, 24, 128, id="1024x24g128"),
    pytest.param(768, 9, None, id="768x9"),
    pytest.param(1056, 17, 32, id="1056x17g32"),
    pytest.param(544, 8, 96, id="544x8g96"),
    pytest.param(2048, 5, 1024, id="2048x5g1024"),
    pytest.param(200, 11, 64, id="200x11g64-last-group-is-short"),
    pytest.param(37, 13, None, id="37x13"),
]


@pytest.fixture(autouse=True)
def library() -> None:
    """No compiler, no kernels: test_build says what happens then."""
    try:
        build.find_compiler()
    except build.BuildError as error:
        pytest.skip(f"no kernels here: {error}")
    packed.load()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind, _, isa = request.param.partition("-")
    best = packed.cpu_isa()
    if packed.ISAS.index(isa) > packed.ISAS.index(best):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("BITSWEEP_CPU_ISA", isa)
    assert packed.cpu_isa() == isa
    return kind


class Layer:
    """One layer in GPTQ's buffers and in the kernel layout, and its exact weight [out, in]."""

    def __init__(
        self,
        bits: int,
        inputs: int,
        outputs: int,
        group: int | None,
        *,
        ternary: bool = False,
        fill: int | None = None,
        scale_dtype: torch.dtype = torch.float16,
    ) -> None:
        generator = torch.Generator().manual_seed(bits * inputs + outputs)
        size = group or inputs
        groups, top = -(-inputs // size), 3 if ternary else 2**bits
        shape, grid = (inputs, outputs), (groups, outputs)
        self.codes = torch.randint(0, top, shape, dtype=torch.uint8, generator=generator)
        if fill is not None:
            self.codes.fill_(fill)
        scales = (torch.rand(grid, generator=generator) + 0.1).to(scale_dtype)
        zeros = torch.randint(0, top, grid, dtype=torch.uint8, generator=generator)
        negative = (torch.rand(grid, generator=generator) + 0.1).to(scale_dtype)
        self.qweight = pack_codes(self.codes, bits, dim=0)
        self.qzeros = None if ternary else pack_codes(zeros, bits)
        self.negative = negative if ternary else None
        self.scales, self.bits, self.inputs, self.outputs, self.group = (
            scales, bits, inputs, outputs, group,
        )  # fmt: skip
        self.packed = packed.pack(
            self.qweight, scales, self.qzeros, self.negative, bits=bits, in_features=inputs
        )
        self.weight = reference.dequantize(
            self.qweight, scales, self.qzeros, self.negative, None, bits, inputs, size,
            torch.float32,
        )  # fmt: skip

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return packed.linear(
            x,
            self.packed,
            bits=self.bits,
            out_features=self.outputs,
            group_size=self.group,
            bias=bias,
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return packed.dequantize(
            self.packed,
            bits=self.bits,
            in_features=self.inputs,
            out_features=self.outputs,
            group_size=self.group,
            dtype=dtype,
        )


def random_x(batch: int, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, inputs, generator=generator).to(dtype)


def check_error(layer: Layer, x: Tensor, bias: Tensor | None = None) -> None:
    """At most twice the error of torch's product of the dequantized weight in the dtype of x."""
    y = layer.linear(x, bias)
    assert y.dtype == x.dtype
    added = None if bias is None else bias.double()
    exact = functional.linear(x.double(), layer.weight.double(), added)
    plain = functional.linear(
        x, layer.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    )
    error, allowed = (y.double() - exact).abs(), (plain.double() - exact).abs()
    # Short sums of a few outputs may hit an exact result by luck: one rounding is always allowed.
    eps = torch.finfo(x.dtype).eps * float(exact.abs().max())
    assert float(error.max()) <= 2 * float(allowed.max()) + eps
    assert float(error.mean()) <= 2 * float(allowed.mean()) + eps / 2


@pytest.mark.parametrize(("inputs", "outputs", "group"), SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_product_and_exactness(
    device: str, bits: int, inputs: int, outputs: int, group: int | None
) -> None:
    layer = Layer(bits, inputs, outputs, group)
    assert torch.equal(layer.dequantize(), layer.weight)
    half = layer.dequantize(torch.bfloat16)
    assert torch.equal(half, layer.weight.to(torch.bfloat16))
    # One-hot rows pick out inputs; products with 0 and sums of 0 are exact.
    picked = torch.randperm(inputs, generator=torch.Generator().manual_seed(0))[:64]
    assert torch.equal(layer.linear(torch.eye(inputs)[picked]), layer.weight.t()[picked])
    bias = torch.linspace(-1, 1, outputs)
    for batch in (1, 6):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check_error(layer, random_x(batch, inputs, dtype), bias)


@pytest.mark.parametrize("group", [None, 32, 128])
def test_ternary(device: str, group: int | None) -> None:
    layer = Layer(2, 544, 19, group, ternary=True)
    assert torch.equal(layer.dequantize(), layer.weight)
    assert torch.equal(layer.linear(torch.eye(544)[:64]), layer.weight.t()[:64])
    check_error(layer, random_x(5, 544), torch.ones(19))


@pytest.mark.parametrize("batch", BATCHES)
def test_batches(device: str, batch: int) -> None:
    layer = Layer(3, 640, 21, 128)
    check_error(layer, random_x(batch, 640))
    check_error(layer, random_x(batch, 640, torch.bfloat16), torch.ones(21).bfloat16())


def test_rows_do_not_depend_on_the_batch(device: str) -> None:
    layer = Layer(4, 640, 21, 128)
    x = random_x(64, 640)
    together = layer.linear(x)
    for rows in (slice(0, 1), slice(3, 5), slice(7, 30)):
        assert torch.equal(layer.linear(x[rows]), together[rows])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("end", ["zero", "maximum"])
def test_extreme_codes(device: str, bits: int, end: str) -> None:
    layer = Layer(bits, 544, 9, 32, fill=0 if end == "zero" else 2**bits - 1)
    assert torch.equal(layer.dequantize(), layer.weight)
    check_error(layer, random_x(3, 544))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_storage_of_scales(device: str, dtype: torch.dtype) -> None:
    layer = Layer(4, 256, 9, 64, scale_dtype=dtype)
    assert torch.equal(layer.dequantize(), layer.weight)
    check_error(layer, random_x(2, 256))


def test_real_shapes(device: str) -> None:
    """Rows as long as real models have them, few outputs so that it stays quick."""
    for inputs in (768, 2048, 7168, 11008, 12288, 14336, 18944):
        check_error(Layer(3, inputs, 3, 128), random_x(1, inputs))


def test_repeats_are_bit_identical_for_any_number_of_threads(device: str) -> None:
    layer = Layer(3, 1056, 40, 32)
    x = random_x(3, 1056)
    threads = torch.get_num_threads()
    first = layer.linear(x)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for _ in range(300):
                assert torch.equal(layer.linear(x), first)
    finally:
        torch.set_num_threads(threads)


def test_outputs_are_written_whole(device: str) -> None:
    """Memory that the output takes over is full of NaN; padding rows must not read past the end."""
    layer = Layer(4, 256, 9, 64)
    x = random_x(5, 256)
    expected = layer.linear(x)
    for _ in range(20):
        torch.full_like(expected, float("nan"))  # freed at once: the next output may lie there
        assert torch.equal(layer.linear(x), expected)
    assert not bool(layer.linear(torch.zeros(5, 256)).any())


def test_inputs_of_other_strides_and_dimensions(device: str) -> None:
    layer = Layer(4, 256, 9, 64)
    x = random_x(6, 512)[:, ::2]
    assert torch.equal(layer.linear(x), layer.linear(x.contiguous()))
    assert torch.equal(layer.linear(x.view(2, 3, 256)), layer.linear(x).view(2, 3, 9))
    assert layer.linear(x[:0]).shape == (0, 9)
    assert layer.linear(x[0]).shape == (9,)


@pytest.mark.parametrize("bits", BITS)
def test_repack_makes_the_tiles_of_the_codes(bits: int) -> None:
    for inputs, outputs in ((37, 5), (544, 16), (1000, 33)):
        layer = Layer(bits, inputs, outputs, None)
        assert torch.equal(layer.packed.tiles, tile_codes(layer.codes.t(), bits))
        back = packed.unpack(layer.packed, bits=bits, in_features=inputs, out_features=outputs)
        assert torch.equal(back["qweight"], layer.qweight)
        assert torch.equal(back["scales"], layer.scales)
        assert torch.equal(back["qzeros"], layer.qzeros)


def test_registration() -> None:
    layer = Layer(4, 256, 9, 64)
    held = layer.packed
    tests = ("test_schema", "test_faketensor")
    arguments = (held.tiles, held.scales, held.zeros, held.negative)
    torch.library.opcheck(
        torch.ops.bitsweep.packed_linear,
        (random_x(3, 256), *arguments, torch.ones(9), 4, 9, 64),
        test_utils=tests,
    )
    torch.library.opcheck(
        torch.ops.bitsweep.packed_dequantize,
        (*arguments, 4, 256, 9, 64, torch.bfloat16),
        test_utils=tests,
    )
    torch.library.opcheck(torch.ops.bitsweep.repack, (layer.qweight, 4, 256), test_utils=tests)


def test_torch_compile_traces_one_graph() -> None:
    layer = Layer(4, 256, 9, 64)
    compiled = torch.compile(
        lambda x: layer.linear(x * 2).relu(), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for batch in (2, 5, 520):
        x = random_x(batch, 256)
        torch.testing.assert_close(compiled(x), layer.linear(x * 2).relu())


def wrong(**changes: Any) -> list[Any]:
    layer = Layer(4, 256, 9, 64)
    held = layer.packed
    arguments: dict[str, Any] = {
        "x": random_x(2, 256), "tiles": held.tiles, "scales": held.scales, "zeros": held.zeros,
        "negative": None, "bias": None, "bits": 4, "out_features": 9, "group_size": 64,
    }  # fmt: skip
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    return list(arguments.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": lambda x: x.int()}, "packed_linear: x is int32; pass float32, bfloat16 or float16"),
        ({"x": torch.tensor(1.0)}, "x is a scalar"),
        ({"x": torch.zeros(1, 128)}, r"tiles is \[2, 2, 8, 16\]; expected \[2, 1, 8, 16\]"),
        ({"tiles": lambda t: t.long()}, "tiles is int64; expected int32"),
        ({"tiles": lambda t: t.transpose(0, 1)[:, :2].transpose(0, 1)[:, :1]}, "tiles is "),
        (
            {"tiles": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view_as(t)},
            "tiles begins at an address that is not a multiple of 16",
        ),
        ({"scales": lambda s: s.transpose(1, 2)}, r"scales is \[2, 8, 4\]; expected \[2, 4, 8\]"),
        (
            {"scales": lambda s: s.transpose(1, 2).contiguous().transpose(1, 2)},
            "scales is not contiguous",
        ),
        ({"scales": lambda s: s.double()}, "scales is float64; pass float32, bfloat16 or float16"),
        ({"zeros": lambda z: z.int()}, "zeros is int32; expected uint8"),
        ({"zeros": None}, "neither of zeros .* and negative"),
        ({"negative": lambda _: torch.zeros(2, 4, 8).half()}, "both of zeros"),
        ({"bias": torch.zeros(8)}, r"bias is \[8\]; expected \[9\]"),
        ({"bits": 5}, "bits=5 is not a bit width; choose one of 2, 3, 4, 8"),
        ({"group_size": 16}, "group_size=16 is neither a multiple of 32"),
        ({"out_features": 0}, "out_features=0; pass at least 1"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bitsweep.packed_linear(*wrong(**changes))


def test_an_instruction_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "BITSWEEP_CPU_ISA", "avx9000")
    with pytest.raises(RuntimeError, match="BITSWEEP_CPU_ISA=avx9000 is unknown; choose avx512"):
        packed.cpu_isa()
