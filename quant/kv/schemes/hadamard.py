"""Keys and values rotated by a Hadamard matrix, then rounded token by token (as in QuaRot).

Queries are rotated too, so that products with keys stay the same; reading back undoes the rotation
instead, which is the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.kv.base import KvCacheError, KvScheme, Shape
from quant.kv.stepped import Stepped
from quant.kv.windowed import Codes, solve_window

NAME = "hadamard"


@dataclass(frozen=True)
class Options(Codes):
    """As of Codes; groups are channels of a rotated head."""


def solve(options: Options, shape: Shape, length: int, budget: float) -> Stepped:
    """As per token, in rotated coordinates; KvCacheError unless heads have 2^n channels."""
    for what, width in (("keys", shape.keys), ("values", shape.values)):
        if width & (width - 1):
            raise KvCacheError(
                f"kv scheme {NAME} needs heads whose width is a power of two, but {what} have "
                f"{width} channels: leave {NAME} out of the schemes."
            )
    return solve_window(NAME, options, shape, length, budget, rotated=True)


SCHEME = KvScheme(NAME, "Hadamard + RTN", solve, Options, source="arXiv 2404.00456")
