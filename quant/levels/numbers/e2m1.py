"""E2M1, a floating-point number of 4 bits: sign, two bits of exponent, one of mantissa.

The values are those of the OCP Microscaling Formats specification 1.0, section 5.3.3. Codes in
Bitsweep are ranks (quant.levels.numbers.table), in files they are the bits of the number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.levels.numbers import table

if TYPE_CHECKING:
    from torch import Tensor

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = _MAGNITUDES[-1]
TABLE = (*(-each for each in reversed(_MAGNITUDES)), *_MAGNITUDES)
ZEROS = (7, 8)  # ranks of the negative and the positive zero
# Whether the upper of two adjacent ranks is the even one. At 0 there is no tie (table.middles).
_UPWARD = (*(rank % 2 == 0 for rank in range(7)), False, *(rank % 2 == 1 for rank in range(8, 15)))


def encode(values: Tensor, scale: Tensor) -> Tensor:
    """Return the ranks of the levels nearest to values [..., rows] on scales; ties to even.

    A value halfway between two levels gets the one whose mantissa is 0, as section 6.3 of the
    specification recommends. Small negative values become the negative zero.
    """
    import torch

    ends = table.middles(TABLE, values)
    below = torch.nextafter(ends, torch.full_like(ends, -torch.inf))
    return table.between(values, scale, torch.where(torch.tensor(_UPWARD), below, ends))


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
