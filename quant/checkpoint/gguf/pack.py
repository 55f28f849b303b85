"""Pack uniform codes into the blocks of GGUF whose grids are theirs, so that no value changes.

Types of 32 weights have a float16 scale, and those with a minimum a second number: values are
d * (q - 2^(bits-1)) or d * q + m. K types of 256 weights multiply d by small whole numbers, one for
every part of a block; with 1 in all of them, and with dmin = d and the zero-point as the number of
every minimum, their values are d * (q - zero) too, for any zero-point. Blocks are those of
ggml-quants.c; the tests compare with the dequantizer of the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

_SMALL, _LARGE = 32, 256  # weights of a block
Make = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Packing:
    """A type of GGUF that holds codes of one width.

    name       its name there: "Q4_0".
    bits       of a code; symmetric: whether its zero-point is always 2^(bits-1).
    block      weights of a block, which lie in one group; size: bytes of a block.
    minimum    whether a block stores -scale * zero as float16, which must then be exact.
    make       (codes [blocks, block], scale [blocks, 1] float16, zero [blocks, 1]) -> uint8
               [blocks, size].
    """

    name: str
    bits: int
    symmetric: bool
    block: int
    size: int
    make: Make
    minimum: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight."""
        return 8 * self.size / self.block


def packing_of(scheme: Scheme, inputs: int) -> Packing | None:
    """Return the smallest type that holds a layer with these inputs; None if there is none."""
    size = scheme.group_size or inputs
    for each in packings(scheme):
        if inputs % each.block == 0 and size % each.block == 0:
            return each
    return None


def packings(scheme: Scheme) -> list[Packing]:
    """Return the types whose grids are those of a scheme, of whatever groups, smallest first."""
    return [
        each
        for each in PACKINGS
        if each.bits == scheme.bits and (scheme.symmetric or not each.symmetric)
    ]


def check_values(weight: QuantizedWeight, packing: Packing, layer: str) -> None:
    """Raise ArtifactError unless the type holds every scale, and every minimum, exactly."""
    assert weight.zero is not None
    if weight.group_index is not None:
        raise ArtifactError(
            f"{layer} has groups whose columns act-order has scattered, and blocks of GGUF are "
            "adjacent columns: use --format gptq-v2, or quantize with method.static_groups=true."
        )
    scale = weight.scale.float()
    wrong = int((scale.half().float() != scale).sum())
    if wrong:
        raise ArtifactError(
            f"{layer}: {wrong} of {scale.numel()} scales are not exact in float16, which blocks of "
            "GGUF have: use --format gptq-v2, or quantize with scheme.scale_dtype=float16."
        )
    least = scale * weight.zero
    wrong = int((least.half().float() != least).sum()) if packing.minimum else 0
    if wrong:
        raise ArtifactError(
            f"{layer}: {wrong} of {scale.numel()} minima (-scale * zero-point) are not exact in "
            f"float16, which {packing.name} has: quantize with scheme.symmetric=true, or with "
            f"groups of {_LARGE} or one a row, or use --format gptq-v2."
        )


def pack(weight: QuantizedWeight, packing: Packing) -> Tensor:
    """Return uint8 [outputs, bytes of a row] of a weight that `check_values` accepts."""
    assert weight.zero is not None
    outputs, inputs = weight.shape
    groups = weight.column_groups()[:: packing.block]
    scale, zero = (each[:, groups].reshape(-1, 1) for each in (weight.scale, weight.zero))
    codes = weight.codes.reshape(-1, packing.block)
    made = packing.make(codes, scale.half(), zero)
    return made.reshape(outputs, inputs // packing.block * packing.size)


def _bytes(numbers: Tensor) -> Tensor:
    """float16 [blocks, 1] as uint8 [blocks, 2]."""
    return numbers.contiguous().view(torch.uint8)


def _halves(codes: Tensor) -> Tensor:
    """Two codes a byte, the second half of the last dimension in the upper four bits."""
    low, high = codes.chunk(2, dim=-1)
    return ((low & 15) | (high << 4)).flatten(1)


def _planes(codes: Tensor, bits: int, count: int) -> Tensor:
    """`count` codes of `bits` a byte: code k of byte l is codes[..., k, l]."""
    shifts = torch.arange(count, dtype=torch.uint8).mul(bits).view(-1, 1)
    made: Tensor = (codes << shifts).sum(-2, dtype=torch.uint8).flatten(1)
    return made


def _least(scale: Tensor, zero: Tensor) -> Tensor:
    return _bytes((-(scale.float() * zero)).half())


def _q4_0(codes: Tensor, scale: Tensor, _zero: Tensor) -> Tensor:
    return torch.cat([_bytes(scale), _halves(codes)], 1)


def _q4_1(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.cat([_bytes(scale), _least(scale, zero), _halves(codes)], 1)


def _fifth(codes: Tensor) -> Tensor:
    """Bit 4 of 32 codes as four bytes, the first code lowest."""
    return _planes((codes >> 4).view(-1, 4, 8, 1), 1, 8)


def _q5_0(codes: Tensor, scale: Tensor, _zero: Tensor) -> Tensor:
    return torch.cat([_bytes(scale), _fifth(codes), _halves(codes)], 1)


def _q5_1(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.cat([_bytes(scale), _least(scale, zero), _fifth(codes), _halves(codes)], 1)


def _q8_0(codes: Tensor, scale: Tensor, _zero: Tensor) -> Tensor:
    return torch.cat([_bytes(scale), codes ^ 128], 1)  # code - 128 in two's complement


def _q2_k(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    parts = (zero << 4 | 1).expand(-1, 16)
    planes = _planes(codes.view(-1, 2, 4, 32), 2, 4)
    return torch.cat([parts, planes, _bytes(scale), _bytes(scale)], 1)


def _q3_k(codes: Tensor, scale: Tensor, _zero: Tensor) -> Tensor:
    high = _planes((codes >> 2).view(-1, 8, 32), 1, 8)
    low = _planes((codes & 3).view(-1, 2, 4, 32), 2, 4)
    # Numbers of the 16 parts are stored plus 32: 33 is 1 in the low four bits, 2 in the others.
    parts = torch.tensor([0x11] * 8 + [0xAA] * 4, dtype=torch.uint8).expand(len(codes), -1)
    return torch.cat([high, low, parts, _bytes(scale)], 1)


def _parts_of_k(zero: Tensor) -> Tensor:
    """Numbers of the 8 parts, 1 for scales and the zero-point for minima, in six bits each."""
    one = torch.ones_like(zero)
    first = zero | (zero >> 4 << 6)
    return torch.cat([one.expand(-1, 4), first.expand(-1, 4), (zero << 4 | 1).expand(-1, 4)], 1)


def _q4_k(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    numbers = [_bytes(scale), _bytes(scale), _parts_of_k(zero)]
    return torch.cat([*numbers, _halves(codes.view(-1, 4, 64))], 1)


def _q5_k(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    numbers = [_bytes(scale), _bytes(scale), _parts_of_k(zero)]
    high = _planes((codes >> 4).view(-1, 8, 32), 1, 8)
    return torch.cat([*numbers, high, _halves(codes.view(-1, 4, 64))], 1)


def _q6_k(codes: Tensor, scale: Tensor, _zero: Tensor) -> Tensor:
    low = _halves(codes.view(-1, 2, 128))
    high = _planes((codes >> 4).view(-1, 2, 4, 32), 2, 4)
    parts = torch.ones(len(codes), 16, dtype=torch.uint8)
    return torch.cat([low, high, parts, _bytes(scale)], 1)


# Of one width the smaller blocks in bytes come first.
PACKINGS = (
    Packing("Q4_0", 4, True, _SMALL, 18, _q4_0),
    Packing("Q5_0", 5, True, _SMALL, 22, _q5_0),
    Packing("Q8_0", 8, True, _SMALL, 34, _q8_0),
    Packing("Q2_K", 2, False, _LARGE, 84, _q2_k),
    Packing("Q3_K", 3, True, _LARGE, 110, _q3_k),
    Packing("Q4_K", 4, False, _LARGE, 144, _q4_k),
    Packing("Q5_K", 5, False, _LARGE, 176, _q5_k),
    Packing("Q6_K", 6, True, _LARGE, 210, _q6_k),
    Packing("Q4_1", 4, False, _SMALL, 20, _q4_1, minimum=True),
    Packing("Q5_1", 5, False, _SMALL, 24, _q5_1, minimum=True),
)
