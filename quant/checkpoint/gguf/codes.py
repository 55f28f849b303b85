"""Codes and grids of GGUF's blocks: the reverse of quant.checkpoint.gguf.pack, for every type.

Types whose weights are chosen one by one have levels of their own in every group, whatever found
them: d * (q - 2^(bits-1)), d * q + m, or a table times d. Types of vectors (IQ1 to IQ3) choose
eight or four weights at once from a codebook: they have values, and no codes of single weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.checkpoint.gguf.blocks import codes_of_q6_k, half, numbers_of_k
from quant.checkpoint.gguf.levels import AFFINE, FP4, IQ4
from quant.levels import ternary, uniform
from quant.levels.base import Levels
from quant.levels.numbers import e2m1, e8m0
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

# A group whose scale is 0 has one level, 0. Uniform grids divide by their scale, so they get this
# one and the code of 0: all of their levels are 0 beside any weight.
NOTHING = 2.0**-100
_ALL_BITS = 127  # of an unsigned E4M3 number, which is none and stands for 0
# (bytes of blocks [blocks, size]) -> codes uint8 [blocks, block], and tensors of the grid, float32
# [blocks, groups of a block].
Read = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


class BadBlock(ValueError):
    """Codes or numbers that the type does not have."""


@dataclass(frozen=True)
class Type:
    """A type of GGUF whose weights are chosen one by one.

    block   weights of a block, size its bytes; group: weights that share a grid.
    levels  bits, and whether the zero-point is 2^(bits-1) (uniform levels).
    """

    block: int
    size: int
    group: int
    bits: int
    levels: Levels
    read: Read

    @property
    def scheme(self) -> Scheme:
        """Its scheme, with scales as they are computed."""
        return Scheme(
            self.bits,
            self.group,
            symmetric=self.levels == uniform.LEVELS,
            levels=self.levels,
            scale_dtype="float32",
        )


def has_grid(kind: str) -> bool:
    """Whether the weights of a type are chosen one by one."""
    return kind in TYPES


def read_codes(kind: str, raw: Tensor, inputs: int) -> QuantizedWeight:
    """Return the codes and grids of packed rows, uint8 [out, bytes of a row].

    Its values are those of the package `gguf`, bit for bit. BadBlock for numbers that are not
    finite, and for codes that the type does not have.
    """
    how = TYPES[kind]
    codes, grid = how.read(raw.reshape(-1, how.size))
    for name, part in grid.items():
        if not bool(torch.isfinite(part).all()):
            raise BadBlock(f"has a {name} that is no finite number")
    scheme, outputs = how.scheme, len(raw)
    if int(codes.max()) > scheme.max_code:
        raise BadBlock(f"has the code {int(codes.max())}, and {kind} ends at {scheme.max_code}")
    if how.levels == uniform.LEVELS:
        codes, grid = _without_zeros(codes, grid, scheme)
    codes = codes.reshape(outputs, inputs)
    made = {name: part.reshape(outputs, inputs // how.group) for name, part in grid.items()}
    return QuantizedWeight(codes, scheme, None, made)


def _without_zeros(
    codes: Tensor, grid: dict[str, Tensor], scheme: Scheme
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the zero-points, and replace scales of 0 (NOTHING)."""
    scale, middle = grid["scale"], 2 ** (scheme.bits - 1)
    none = scale == 0
    if bool(none.any()):
        scale = torch.where(none, NOTHING, scale)
        groups = codes.view(len(codes), scale.shape[1], -1)
        codes = torch.where(none[..., None], middle, groups).to(torch.uint8).view(codes.shape)
    return codes, {"scale": scale, "zero": torch.full_like(scale, middle, dtype=torch.uint8)}


def _both(raw: Tensor) -> Tensor:
    """The lower four bits of all bytes of the last dimension, then the upper ones; [blocks, -1]."""
    return torch.cat([raw & 15, raw >> 4], -1).flatten(1)


def _planes(raw: Tensor, bits: int, count: int) -> Tensor:
    """`count` numbers of `bits` of every byte [..., bytes]: all lowest ones, then the next."""
    shifts = torch.arange(count, dtype=torch.uint8).mul(bits).view(-1, 1)
    found: Tensor = ((raw.unsqueeze(-2) >> shifts) & ((1 << bits) - 1)).flatten(1)
    return found


def _bits(raw: Tensor) -> Tensor:
    """All bits of bytes [blocks, bytes], the lowest of the first byte first."""
    shifts = torch.arange(8, dtype=torch.uint8)
    found: Tensor = ((raw[..., None] >> shifts) & 1).flatten(1)
    return found


def _q4_0(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return _both(raw[:, 2:]), {"scale": half(raw, 0)}


def _q4_1(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return _both(raw[:, 4:]), {"scale": half(raw, 0), "offset": half(raw, 2)}


def _q5_0(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return _both(raw[:, 6:]) | _bits(raw[:, 2:6]) << 4, {"scale": half(raw, 0)}


def _q5_1(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    codes = _both(raw[:, 8:]) | _bits(raw[:, 4:8]) << 4
    return codes, {"scale": half(raw, 0), "offset": half(raw, 2)}


def _q8_0(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return raw[:, 2:] ^ 128, {"scale": half(raw, 0)}


def _q2_k(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    numbers = raw[:, :16]
    scale, least = half(raw, 80) * (numbers & 15), half(raw, 82) * (numbers >> 4)
    return _planes(raw[:, 16:80].view(-1, 2, 32), 2, 4), {"scale": scale, "offset": -least}


def _q3_k(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    codes = _planes(raw[:, 32:96].view(-1, 2, 32), 2, 4) | _planes(raw[:, :32], 1, 8) << 2
    low, high = _planes(raw[:, 96:104], 4, 2), _planes(raw[:, 104:108], 2, 4)
    number = (low | high << 4).to(torch.int8) - 32
    return codes, {"scale": half(raw, 108) * number}


def _of_k(raw: Tensor) -> dict[str, Tensor]:
    scale, least = numbers_of_k(raw)
    return {"scale": half(raw, 0) * scale, "offset": -(half(raw, 2) * least)}


def _q4_k(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return _both(raw[:, 16:].view(-1, 4, 32)), _of_k(raw)


def _q5_k(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    low = _both(raw[:, 48:].view(-1, 4, 32))
    return low | _planes(raw[:, 16:48], 1, 8) << 4, _of_k(raw)


def _q6_k(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return codes_of_q6_k(raw), {"scale": half(raw, 208) * raw[:, 192:208].view(torch.int8)}


def _iq4_nl(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return _both(raw[:, 2:]), {"scale": half(raw, 0)}


def _iq4_xs(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Numbers of eight parts: four bits in one byte of two, two in a word of 16."""
    low = torch.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], -1).flatten(1)
    high = torch.stack([(raw[:, 2:4] >> shift) & 3 for shift in (0, 2, 4, 6)], -1).flatten(1)
    number = (low | high << 4).to(torch.int8) - 32
    return _both(raw[:, 8:].view(-1, 8, 16)), {"scale": half(raw, 0) * number}


def _mxfp4(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    if int(raw[:, 0].max()) == e8m0.NAN:
        raise BadBlock("has a scale that is no number (E8M0 255)")
    return e2m1.ranks(_both(raw[:, 1:])), {"scale": e8m0.scale(raw[:, :1].float())}


def _nvfp4(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Four groups of 16, with unsigned E4M3 scales."""
    exponent, mantissa = ((raw[:, :4] >> 3) & 15).float(), (raw[:, :4] & 7).float()
    normal = (1 + mantissa / 8) * e8m0.scale(exponent + e8m0.BIAS - 7)
    scale = torch.where(exponent == 0, mantissa * 2**-9, normal)
    scale = scale.masked_fill(raw[:, :4] == _ALL_BITS, 0)
    return e2m1.ranks(_both(raw[:, 4:].view(-1, 4, 8))), {"scale": scale}


def _ternary(codes: Tensor, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A negative scale turns the grid around, whose levels are equally far from 0."""
    codes = torch.where(scale < 0, 2 - codes, codes)
    return codes, {"scale": scale.abs(), "negative_scale": scale.abs()}


def _tq1_0(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Five ternary digits a byte, as a fraction of 256, and four in the last bytes."""

    def digits(part: Tensor, count: int) -> Tensor:
        powers = torch.tensor([3**each for each in range(count)], dtype=torch.uint8).view(-1, 1)
        return (part.unsqueeze(-2) * powers).flatten(1)  # modulo 256

    found = [digits(raw[:, :32], 5), digits(raw[:, 32:48], 5), digits(raw[:, 48:52], 4)]
    codes = (torch.cat(found, 1).int() * 3 >> 8).to(torch.uint8)
    return _ternary(codes, half(raw, 52))


def _tq2_0(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return _ternary(_planes(raw[:, :64].view(-1, 2, 32), 2, 4), half(raw, 64))


TYPES = {
    "Q4_0": Type(32, 18, 32, 4, uniform.LEVELS, _q4_0),
    "Q4_1": Type(32, 20, 32, 4, AFFINE, _q4_1),
    "Q5_0": Type(32, 22, 32, 5, uniform.LEVELS, _q5_0),
    "Q5_1": Type(32, 24, 32, 5, AFFINE, _q5_1),
    "Q8_0": Type(32, 34, 32, 8, uniform.LEVELS, _q8_0),
    "Q2_K": Type(256, 84, 16, 2, AFFINE, _q2_k),
    "Q3_K": Type(256, 110, 16, 3, uniform.LEVELS, _q3_k),
    "Q4_K": Type(256, 144, 32, 4, AFFINE, _q4_k),
    "Q5_K": Type(256, 176, 32, 5, AFFINE, _q5_k),
    "Q6_K": Type(256, 210, 16, 6, uniform.LEVELS, _q6_k),
    "IQ4_NL": Type(32, 18, 32, 4, IQ4, _iq4_nl),
    "IQ4_XS": Type(256, 136, 32, 4, IQ4, _iq4_xs),
    "TQ1_0": Type(256, 54, 256, 2, ternary.LEVELS, _tq1_0),
    "TQ2_0": Type(256, 66, 256, 2, ternary.LEVELS, _tq2_0),
    "MXFP4": Type(32, 17, 32, 4, FP4, _mxfp4),
    "NVFP4": Type(64, 36, 16, 4, FP4, _nvfp4),
}
