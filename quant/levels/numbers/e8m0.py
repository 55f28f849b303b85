"""E8M0, the scales of the OCP Microscaling Formats specification 1.0: powers of two in a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BIAS = 127
NAN = 255


def scale(exponent: Tensor) -> Tensor:
    """Return 2^(exponent - 127) in the dtype of the exponents, which are whole numbers.

    From a table: a power that a processor computes may be off in its last bit.
    """
    import torch

    powers = torch.tensor([2.0 ** (each - BIAS) for each in range(NAN)], dtype=torch.float32)
    found = powers.to(exponent).index_select(0, exponent.flatten().int())
    return found.view(exponent.shape)
