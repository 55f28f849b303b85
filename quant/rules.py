"""Rules: the deviations from a requested quantization that a user allows; others are errors.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

REFUSE, DAMP, RTN = "refuse", "damp", "rtn"
FEW_TOKENS = (REFUSE, DAMP, RTN)
# Least share of the weights of the blocks' matrices that must be quantized. What normally stays in
# full precision (routers, small matrices of state-space mixers) is less than the rest in every
# model tested.
LEAST_COVERAGE = 0.95


@dataclass(frozen=True)
class Rules:
    """Settings that apply to every solver.

    partial     quantize even if less than 95 % of the weights of the blocks' matrices are in layers
                that can be quantized.
    few_tokens  what to do with an expert that received fewer than min_tokens calibration tokens.
                "refuse" raises an error that names it. "damp" shrinks its Hessian toward the mean
                of its diagonal by the share of missing tokens (GPTQ with a multiple of the identity
                is RTN). "rtn" rounds it to nearest, which is the only choice for an expert without
                tokens.
    min_tokens  None means the number of inputs of the layer; with fewer tokens its Hessian is
                singular.

    Raises ValueError, with a sentence that says what to change, for invalid values.
    """

    partial: bool = False
    few_tokens: str = REFUSE
    min_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.few_tokens not in FEW_TOKENS:
            raise ValueError(
                f"few_tokens={self.few_tokens!r} is unknown; choose one of {', '.join(FEW_TOKENS)}."
            )
        if self.min_tokens is not None and self.min_tokens < 1:
            raise ValueError(
                f"min_tokens={self.min_tokens} is not a number of tokens; use 1 or more, or null "
                "for as many as the layer has inputs."
            )

    def given(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults, for records, keys and artifacts."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value != getattr(STRICT, name)}


STRICT = Rules()
TOKEN_RULES = ("few_tokens", "min_tokens")  # apply only to solvers that use calibration text
RULES = tuple(field.name for field in fields(Rules))
