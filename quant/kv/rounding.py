"""Round keys and values to few bits as a cache stores them, and read them back.

A group of numbers x has a zero-point z = min x and a scale s = (max x - min x) / (2^b - 1), both
stored in 16 bits; a code is round((x - z) / s), cut to 0 .. 2^b - 1, and reads back as s code + z.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from quant.hadamard import hadamard_matrix
from quant.kv.base import STORED_BITS, KvCacheError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITS = (8, 4, 3, 2)  # of a code, in the order in which a budget tries them


@dataclass(frozen=True)
class Rounding:
    """Codes of so many bits, in groups along the channels of a token or along tokens.

    group       numbers that share a scale and a zero-point.
    by_channel  groups are consecutive tokens of one channel; otherwise channels of one token.
    rotated     a Hadamard matrix is applied to the channels before, and undone when read.
    """

    bits: int
    group: int
    by_channel: bool = False
    rotated: bool = False

    @property
    def cost(self) -> float:
        """Bits for each number."""
        return self.bits + 2 * STORED_BITS / self.group

    def read(self, x: Tensor) -> Tensor:
        """x [heads, tokens, channels] as read back.

        By channel, tokens behind the last whole group stay as they are.
        """
        if self.by_channel:
            whole = x.shape[1] // self.group * self.group
            groups = x[:, :whole].unflatten(1, (-1, self.group))
            found = x.clone()
            found[:, :whole] = _rounded(groups, self.bits, 2).flatten(1, 2)
            return found
        matrix = hadamard(x.shape[-1]).to(x) if self.rotated else None
        x = x if matrix is None else x @ matrix
        x = _rounded(x.unflatten(-1, (-1, self.group)), self.bits, -1).flatten(-2)
        return x if matrix is None else x @ matrix


def _rounded(x: Tensor, bits: int, axis: int) -> Tensor:
    import torch

    low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    most = 2**bits - 1
    scale: Tensor = ((high - low) / most).to(torch.float16).to(x.dtype)
    zero = low.to(torch.float16).to(x.dtype)
    codes: Tensor = ((x - zero) / scale.where(scale > 0, 1.0)).round_().clamp_(0, most)
    return codes.mul_(scale).add_(zero)


def stored(x: Tensor, dtype: torch.dtype, layer: int) -> Tensor:
    """x rounded to the dtype of a cache, in its own; KvCacheError if a number overflows."""
    import torch

    found = x.to(dtype).to(x.dtype)
    if not bool(torch.isfinite(found).all()):
        raise KvCacheError(
            f"layer {layer}: a key or value is not finite in {str(dtype).removeprefix('torch.')}; "
            "load the model in bfloat16 (model.dtype=bfloat16), whose caches hold larger numbers."
        )
    return found


@cache
def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix over sqrt(size): symmetric, its own inverse; float64.

    size  a power of two.
    """
    return hadamard_matrix(size).double().div_(size**0.5)
