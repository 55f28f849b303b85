"""Experts with too few calibration tokens, and how the rules treat them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quant.config import QuantizationConfig
from quant.errors import CalibrationError
from quant.hessian import Hessian
from quant.rules import DAMP, REFUSE, RTN, Rules

_SHOWN = 8  # experts that an error names


@dataclass(frozen=True)
class FewTokens:
    """An expert that received `tokens` calibration tokens, fewer than `least`.

    rounded  whether it is rounded to nearest; if not, its Hessian is shrunk.
    """

    tokens: int
    least: int
    rounded: bool

    @property
    def fallback(self) -> str:
        """Return the `fallback` text of the layer's record."""
        done = "rounded to nearest" if self.rounded else "its Hessian was shrunk"
        return f"{self.tokens} calibration tokens were routed to it, under {self.least}: {done}"

    def shrunk(self, hessian: Tensor) -> Tensor:
        """Return s H + (1 - s) mean(diag H) I, in place, with s = tokens / least."""
        share = self.tokens / self.least
        mean = hessian.diagonal().mean()
        return hessian.mul_(share).add_(
            torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device),
            alpha=float((1 - share) * mean),
        )


def few_tokens(hessian: Hessian, routed: bool, rules: Rules) -> FewTokens | None:
    """Return how to treat layers of this Hessian; None if it has enough tokens or is not routed."""
    least = rules.min_tokens or hessian.inputs
    if not routed or hessian.tokens >= least:
        return None
    return FewTokens(hessian.tokens, least, rules.few_tokens == RTN)


def require_tokens(
    hessians: Mapping[tuple[str, ...], Hessian],
    routed: Collection[tuple[str, ...]],
    config: QuantizationConfig,
) -> None:
    """Raise CalibrationError, with names and counts, for experts that no rule allows.

    An expert that received no token can only be rounded.
    """
    if not config.solver.needs_calibration:
        return
    rules = config.rules
    few_of = partial(few_tokens, rules=rules)
    found = {h.layer: few_of(h, names in routed) for names, h in hessians.items()}
    few = {layer: each for layer, each in found.items() if each is not None}
    none = {layer: each for layer, each in few.items() if not each.tokens}
    if rules.few_tokens == REFUSE and few:
        _refuse(few, f"{DAMP} (shrink their Hessians) or method.few_tokens={RTN} (round them)")
    if rules.few_tokens == DAMP and none:
        _refuse(none, f"{RTN} (round them), because they received no token at all")


def _refuse(few: Mapping[str, FewTokens], way: str) -> None:
    named = [f"{layer} {each.tokens} of {each.least}" for layer, each in few.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    raise CalibrationError(
        f"too few calibration tokens were routed to experts ({', '.join(named[:_SHOWN])}{more}): "
        "use more calibration text (calib.sequences), lower method.min_tokens, or allow "
        f"method.few_tokens={way}."
    )
