"""What a user allows a quantization to do otherwise than asked; without leave each is an error.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

REFUSE, DAMP, RTN = "refuse", "damp", "rtn"
FEW_TOKENS = (REFUSE, DAMP, RTN)
# Of the weights of the blocks' matrices: what else stays in full precision beside quantized layers
# (routers, the small matrices of state-space mixers) is less than the rest in every model seen.
LEAST_COVERAGE = 0.95


@dataclass(frozen=True)
class Rules:
    """Keys that stand beside a solver's options, whichever solver it is.

    partial     quantize also where less than 95 % of the weights of the blocks' matrices are in
                layers that can be quantized.
    few_tokens  what to do with an expert that fewer than min_tokens calibration tokens were routed
                to. "refuse" is an error that names it. "damp" shrinks its Hessian toward the mean
                of its diagonal by the share of tokens that are missing (GPTQ with a multiple of
                the identity is RTN). "rtn" rounds it to nearest, as is needed for an expert that
                saw none.
    min_tokens  None: as many as the layer has inputs, below which its Hessian is singular.

    Raises ValueError, one sentence with the way out, for what cannot be.
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
        """Those that are not the defaults: what records, keys and artifacts name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value != getattr(STRICT, name)}


STRICT = Rules()
TOKEN_RULES = ("few_tokens", "min_tokens")  # of solvers that see calibration text
RULES = tuple(field.name for field in fields(Rules))
