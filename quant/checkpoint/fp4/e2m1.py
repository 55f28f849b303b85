"""E2M1, a floating-point number of 4 bits: sign, two bits of exponent, one of mantissa.

The values are those of the OCP Microscaling Formats specification 1.0, section 5.3.3. Codes in
Bitsweep are ranks (quant.checkpoint.bnb.table), in files they are the bits of the number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.checkpoint.bnb import table

if TYPE_CHECKING:
    from torch import Tensor

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = _MAGNITUDES[-1]
TABLE = (*(-each for each in reversed(_MAGNITUDES)), *_MAGNITUDES)


def encode(values: Tensor, scale: Tensor) -> Tensor:
    """Return the ranks of the levels nearest to values [..., rows] on scales."""
    return table.encode(values, {"scale": scale}, TABLE)


def decode(ranks: Tensor, scale: Tensor) -> Tensor:
    """Return level times scale, rounded once."""
    return table.decode(ranks, {"scale": scale}, TABLE)


def unpack(packed: Tensor) -> Tensor:
    """Return the ranks, uint8 [out, in], of bytes [out, in / 2]; the first code is the low half."""
    import torch

    return ranks(torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1))


def ranks(codes: Tensor) -> Tensor:
    """Return the ranks of codes, uint8: 8 to 15 of 0 to 7, and 7 (of the negative zero) to 0."""
    return codes ^ 8 ^ 7 * (codes >> 3)


def spread() -> float:
    """Return the standard deviation of levels that are all equally frequent."""
    return float((sum(each**2 for each in TABLE) / len(TABLE)) ** 0.5)
