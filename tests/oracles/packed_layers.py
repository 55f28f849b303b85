"""Random layers in the kernel layout with the exact weight that their bytes stand for, on a device.

The oracle of a product is the float64 product of that weight, and the yardstick torch's product of
it in the dtype of x.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cuda_ext import packed, reference
from cuda_ext.layout import pack_codes

BITS = (2, 3, 4, 8)
BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)


def kernel_dtypes(device: str) -> tuple[torch.dtype, ...]:
    """The dtypes of x that the packed kernels of a device take, the usual one first."""
    if device == "cpu":
        return (torch.float32, torch.bfloat16, torch.float16)
    return (torch.float16, torch.bfloat16)


class Layer:
    """One layer in GPTQ's buffers and in the kernel layout, and its exact weight [out, in]."""

    def __init__(
        self,
        bits: int,
        inputs: int,
        outputs: int,
        group: int | None,
        device: str = "cpu",
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
        self.qweight = pack_codes(self.codes, bits, dim=0).to(device)
        self.qzeros = None if ternary else pack_codes(zeros, bits).to(device)
        self.negative = negative.to(device) if ternary else None
        self.scales = scales.to(device)
        self.bits, self.inputs, self.outputs, self.group = bits, inputs, outputs, group
        self.packed = packed.pack(
            self.qweight, self.scales, self.qzeros, self.negative, bits=bits, in_features=inputs
        )
        self.weight = reference.dequantize(
            self.qweight, self.scales, self.qzeros, self.negative, None, bits, inputs, size,
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


def random_x(
    batch: int, inputs: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, inputs, generator=generator).to(dtype).to(device)


def check_error(layer: Layer, x: Tensor, bias: Tensor | None = None) -> None:
    """At most twice the error of torch's product of the dequantized weight in the dtype of x."""
    y = layer.linear(x, bias)
    assert y.dtype == x.dtype
    assert y.device == x.device
    check_product(y, x, layer.weight, bias)


def check_product(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`check_error` for a product y that is there; weight is float32 [out, in]."""
    added = None if bias is None else bias.double()
    exact = functional.linear(x.double(), weight.double(), added)
    plain = functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    error, allowed = (y.double() - exact).abs(), (plain.double() - exact).abs()
    # Short sums of a few outputs may hit an exact result by luck: one rounding is always allowed.
    eps = torch.finfo(x.dtype).eps * float(exact.abs().max())
    assert bool(y.isfinite().all())
    assert float(error.max()) <= 2 * float(allowed.max()) + eps
    assert float(error.mean()) <= 2 * float(allowed.mean()) + eps / 2


def poison(device: str) -> None:
    """Fill free memory of the device's allocator with NaN, in blocks of all sizes that fit here.

    What is allocated next holds NaN wherever its kernel does not write.
    """
    blocks = [
        torch.full((2**size,), 0xFF, dtype=torch.uint8, device=device)
        for size in range(9, 25)
        for _ in range(3)
    ]
    if device != "cpu":
        torch.cuda.synchronize()
    del blocks
