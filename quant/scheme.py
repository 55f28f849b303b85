"""What a quantized weight may be: bits, groups, symmetry, levels and how its grid is searched."""

from __future__ import annotations

from dataclasses import dataclass

BITS = (2, 3, 4, 8)
LEVELS = ("uniform", "ternary")
GRIDS = ("minmax", "mse")
SCALE_DTYPES = {"float16": 16, "bfloat16": 16, "float32": 32}


class SchemeError(ValueError):
    """A scheme that cannot exist, or that does not fit the weight it is applied to."""


@dataclass(frozen=True)
class Scheme:
    """The set of values that a weight matrix [out, in] may take after quantization.

    bits        2, 3, 4 or 8 bits a code. Ternary codes are stored in 2 bits.
    group_size  input columns that share one scale and zero-point; None is one grid per output row.
    symmetric   zero-point fixed at 2^(bits-1) instead of searched (uniform levels only).
    levels      "uniform": scale * (code - zero); "ternary": {row minimum, 0, row maximum} as in
                the appendix of the paper, a grid that is not uniform.
    grid        "minmax": the range of the weights, forced to hold 0 (the paper's quantizer);
                "mse": that range shrunk to the smallest squared error.
    scale_dtype storage type of the scales. Grids are rounded to it *before* weights are quantized,
                so the solver optimises exactly the values that are shipped.

    Raises SchemeError, one sentence with the way out, for a combination that cannot exist.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False
    levels: str = "uniform"
    grid: str = "minmax"
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise SchemeError(f"bits={self.bits} is not a bit width; choose one of {_list(BITS)}.")
        if self.group_size is not None and self.group_size < 1:
            raise SchemeError(
                f"group_size={self.group_size} is not a number of columns; "
                "use null for one grid per row or a divisor of the layer's inputs."
            )
        for field, allowed in (
            ("levels", LEVELS),
            ("grid", GRIDS),
            ("scale_dtype", tuple(SCALE_DTYPES)),
        ):
            if getattr(self, field) not in allowed:
                raise SchemeError(
                    f"{field}={getattr(self, field)!r} is unknown; choose one of {_list(allowed)}."
                )
        if self.ternary and (self.bits != 2 or self.symmetric or self.grid != "minmax"):
            raise SchemeError(
                "ternary levels are {minimum, 0, maximum} stored in 2 bits: "
                "use bits=2, symmetric=false and grid=minmax with levels=ternary."
            )

    @property
    def ternary(self) -> bool:
        return self.levels == "ternary"

    @property
    def max_code(self) -> int:
        """Largest code: 2^bits - 1, or 2 for ternary (0 minimum, 1 zero, 2 maximum)."""
        return 2 if self.ternary else 2**self.bits - 1

    @property
    def name(self) -> str:
        """Short name for tables: w4, w3g128, w4g128_sym, ternary_g8, w3_mse."""
        base = "ternary" if self.ternary else f"w{self.bits}"
        if self.group_size is not None:
            base += f"_g{self.group_size}" if self.ternary else f"g{self.group_size}"
        return base + "_sym" * self.symmetric + "_mse" * (self.grid == "mse")

    def groups(self, inputs: int, layer: str = "this layer") -> int:
        """Number of groups for a weight with `inputs` columns; SchemeError when not a divisor."""
        if self.group_size is None:
            return 1
        if inputs % self.group_size:
            divisors = [d for d in (8, 16, 32, 64, 128, 256, 512, 1024) if inputs % d == 0]
            raise SchemeError(
                f"{layer}: group_size={self.group_size} does not divide its {inputs} inputs; "
                f"use null (one grid per row) or a divisor such as {_list(divisors or [inputs])}."
            )
        return inputs // self.group_size

    def bits_per_weight(self, inputs: int) -> float:
        """Stored bits a weight of a row with `inputs` columns, scales and zero-points included."""
        overhead = (
            2 * SCALE_DTYPES[self.scale_dtype]
            if self.ternary
            else (SCALE_DTYPES[self.scale_dtype] + self.bits)
        )
        # Files of other producers may end in a smaller group.
        groups = -(-inputs // (self.group_size or inputs))
        return self.bits + overhead * groups / inputs


def _list(values: object) -> str:
    return ", ".join(str(value) for value in values)  # type: ignore[attr-defined]
