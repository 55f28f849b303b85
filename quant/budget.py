"""Budget: the scheme of weights that are no codes on a grid: so many bits, in any form. No torch.

Where a Scheme says which values a weight may have, a Budget says how many bits all that is stored
of a layer may take for each of its weights. The method chooses the form (quant.forms): factors, or
fewer rows and columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

from quant.errors import SchemeError
from quant.scheme import Scheme

NAME = "budget"
MOST_BITS = 16.0  # as many as float16 takes of the weight itself


@dataclass(frozen=True)
class Budget:
    """At most `bits` stored bits for each weight of a layer: values, indices and padding.

    bits  above 0 and below 16, with at most ten significant digits (4.3125 is what 4-bit codes in
          groups of 64 take, with their scales and zero-points).

    It has those members of quant.scheme.Scheme that do not depend on a grid. Raises SchemeError.
    """

    bits: float

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int | float) or isinstance(self.bits, bool):
            raise SchemeError(f"budget={self.bits!r} is not a number of bits; use one like 4.25.")
        if not 0 < self.bits < MOST_BITS:
            raise SchemeError(
                f"budget={self.bits:.10g} is not a number of bits per weight to save any: use more "
                "than 0 and fewer than 16, which float16 takes."
            )
        object.__setattr__(self, "bits", float(self.bits))
        if float(f"{self.bits:.10g}") != self.bits:
            raise SchemeError(
                f"budget={self.bits!r} has more than ten digits, which names of schemes leave out: "
                f"use {self.bits:.10g}."
            )

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Parse the name of a budget, budget4.25; None for the name of anything else."""
        found = re.fullmatch(rf"{NAME}([0-9]+(?:\.[0-9]+)?)", name)
        return None if found is None else cls(float(found[1]))

    @property
    def name(self) -> str:
        """Short name for tables and files: budget4.25."""
        return f"{NAME}{self.bits:.10g}"

    @property
    def head(self) -> None:
        """None: the head stays in the dtype of the model."""
        return

    @property
    def embeddings(self) -> None:
        """None: the embeddings stay in the dtype of the model."""
        return

    @property
    def outside(self) -> dict[str, Scheme]:
        """Nothing outside the blocks is quantized."""
        return {}

    def beside(self, outside: Mapping[str, Scheme]) -> Self:
        """Return the budget itself, beside which nothing outside the blocks is quantized."""
        assert not outside, "beside factored layers nothing is quantized"
        return self

    @property
    def without_head(self) -> Self:
        return self

    @property
    def layers(self) -> tuple[()]:
        """No layer has another budget."""
        return ()

    @property
    def every(self) -> tuple[Self]:
        """The budget, which all layers have."""
        return (self,)

    def of(self, layer: str) -> Self:  # noqa: ARG002
        """Return the budget of a layer: this one."""
        return self

    def require_layers(self, layers: Iterable[str]) -> None:
        """Do nothing: no pattern names a layer."""

    @property
    def needs_hessian(self) -> bool:
        return False

    def span(self, inputs: int) -> int:
        """Columns that belong together: all `inputs`."""
        return inputs

    def search_numbers(self, inputs: int) -> int:  # noqa: ARG002
        """0: no grid is searched."""
        return 0

    def refusal(self, inputs: int) -> str | None:  # noqa: ARG002
        """None: what fits depends on the form, so methods say it (Solver.refuses_shape)."""
        return None

    def require(self, inputs: int, layer: str) -> None:
        """Do nothing, as `refusal`."""

    def bits_per_weight(self, inputs: int) -> float:  # noqa: ARG002
        """The most stored bits per weight; a weight knows its own (FactoredWeight.bits)."""
        return self.bits

    def most_bytes(self, outputs: int, inputs: int) -> int:
        """Return the most bytes that a layer [outputs, inputs] may take."""
        return math.floor(self.bits * outputs * inputs / 8)


# What a weight is made to: levels on a grid, or a number of bytes.
AnyScheme: TypeAlias = Scheme | Budget


def parse_scheme(name: str) -> AnyScheme:
    """Parse the name of a scheme or budget, with built-in levels; SchemeError for another."""
    return Budget.parse(name) or Scheme.parse(name)
