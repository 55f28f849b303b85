"""The interface of schemes for key-value caches.

A scheme is one module that ends in `SCHEME = KvScheme(...)`. It is solved for a context length and
a budget of bits, which gives the `Cache` whose attention is measured. Importing it loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from quant.errors import QuantizationError
from quant.solvers.base import require_names, require_options_type

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STORED_BITS = 16  # of a number in full precision, and of a scale or zero-point
ATTENDED = 2**22  # products of queries and keys at once, 16 MiB of float32
QUERIES = (16, 256)  # whose attention is computed at once, least and most
CHECKED = 256  # tokens on which a full cache is compared with the model's own attention


class KvCacheError(QuantizationError):
    """A cache cannot be simulated: of this model, of these numbers, or at this budget."""


@dataclass(frozen=True)
class Shape:
    """The cache of one head of keys and values.

    keys, values  channels of a key and of a value.
    biased        attention depends on the position of a key besides its value (ALiBi), so that a
                  cache with some of the tokens has to hold their positions.
    """

    keys: int
    values: int
    biased: bool = False

    @property
    def numbers(self) -> int:
        """Numbers that a token has in one head."""
        return self.keys + self.values


@dataclass(frozen=True)
class Heads:
    """What the attention of one layer is computed from; tensors of float32, or float64.

    query    [key-value heads, group, tokens, channels]: query heads by the key head they share.
    key      [key-value heads, tokens, channels], as a cache gets them (after rotary positions).
    value    [key-value heads, tokens, channels].
    scaling  factor of the products of queries and keys.
    bias     [key-value heads, group, 1, tokens] added to the logits of a key; None: nothing.
    layer    number of the layer, for random draws and errors.
    stored   dtype of numbers that a cache holds in full precision.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    bias: Tensor | None
    layer: int
    stored: torch.dtype

    @property
    def tokens(self) -> int:
        return self.key.shape[1]


class Cache(Protocol):
    """A scheme solved for a context and a budget."""

    @property
    def words(self) -> list[str]:
        """What was solved, for tables: ["3 bits", "group 64", "newest 327 in 16 bits"]."""
        ...

    def bits(self, tokens: int) -> float:
        """Bits held for each number of a full cache of so many tokens, all overhead counted."""
        ...

    def attend(self, heads: Heads) -> Tensor:
        """The output of attention [key-value heads, group, tokens, channels of a value].

        The query of every token sees the cache as it is when that token is decoded, and itself.
        """
        ...


@dataclass(frozen=True)
class KvScheme:
    """A way to keep keys and values in fewer bits.

    name     in configurations and records: "kivi"; label: in tables.
    solve    solve(options, shape: Shape, length, budget) -> Cache with at most `budget` bits for
             each number at a context of `length` tokens. KvCacheError if there is none.
    options  frozen dataclass that raises a one-sentence ValueError for invalid values.
    source   the paper.
    reading  what is our reading, for the notes of tables; "": nothing.
    version  raised when the scheme computes something else; part of every key.
    copies   of the keys and values of a layer that `attend` holds at most, in the dtype in which it
             computes, for the memory plan.
    """

    name: str
    label: str
    solve: Callable[[Any, Shape, int, float], Cache]
    options: type
    source: str = ""
    reading: str = ""
    version: int = 1
    copies: int = 9

    def __post_init__(self) -> None:
        require_names(self.name, self.label, "kv scheme")
        require_options_type(self.options, f"kv scheme {self.name}")


def beyond(name: str, budget: float, length: int, least: float, why: str, advice: str) -> str:
    """The sentence of a scheme that cannot keep to its budget.

    least   bits for each number that it takes at least; why: at which settings.
    """
    return (
        f"kv scheme {name} cannot keep to {budget:g} bits a number at {length} tokens: it takes "
        f"{least:.2f} at least ({why}); {advice}."
    )
