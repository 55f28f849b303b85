"""Allocation: a scheme for every layer, chosen under a budget of stored bits (`scheme=auto`).

quant.allocate.loss and quant.allocate.divergence find what each layer loses with each candidate,
and quant.allocate.assign chooses. Importing this module does not import torch, because plans use
it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from quant.budget import AnyScheme
from quant.errors import SchemeError
from quant.scheme import OUTSIDE, Scheme

LOSS, RELATIVE, KLD = "loss", "relative", "kld"
SENSITIVITIES = (RELATIVE, LOSS, KLD)
# Raise it when the same model, windows and options give another assignment.
VERSION = 1


@dataclass(frozen=True)
class Allocation:
    """How the schemes of the linear layers in the blocks are chosen.

    bits         most stored bits per weight, the mean over all weights of these layers: codes,
                 scales and zero-points.
    candidates   schemes of which every layer gets one; of one kind of levels.
    sensitivity  what a candidate costs a layer. "loss": the error of its outputs, tr(E H E^T) with
                 E = W - Q of the solver. "relative": that as a share of tr(W H W^T). "kld": the
                 Kullback-Leibler divergence of the model's output from that with this one layer
                 rounded to nearest, nats a token.
    tokens       calibration tokens, from the first on, that kld is measured on.
    fused        whether layers that vLLM makes one of (quant.fused) get one scheme, by the sum of
                 what each loses.
    head         scheme of the language-model head, as in Scheme; not in the budget.
    embeddings   scheme of the token embeddings, as in Scheme; not in the budget.

    Raises SchemeError, with a sentence that says what to change, for what cannot be.
    """

    bits: float
    candidates: tuple[Scheme, ...]
    sensitivity: str = RELATIVE
    tokens: int = 1024
    fused: bool = False
    head: Scheme | None = None
    embeddings: Scheme | None = None

    def __post_init__(self) -> None:
        names = [each.name for each in self.candidates]
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise SchemeError(
                f"auto.candidates={names} leaves no choice: name two schemes or more, each once."
            )
        for each in self.candidates:
            if each != each.without_head:
                raise SchemeError(
                    f"auto.candidates has {each.name}, which is not the scheme of one layer."
                )
        # What is refused of layers of one model is refused of candidates.
        layers = tuple((each.name, each) for each in self.candidates[1:])
        replace(self.candidates[0], layers=layers).beside(self.outside)
        if self.sensitivity not in SENSITIVITIES:
            raise SchemeError(
                f"auto.sensitivity={self.sensitivity!r} is unknown; choose one of "
                f"{', '.join(SENSITIVITIES)}."
            )
        if self.tokens < 2:
            raise SchemeError(f"auto.tokens={self.tokens} is no window; use 2 tokens or more.")
        searched = [each.name for each in self.candidates if each.needs_hessian]
        if self.sensitivity == KLD and searched:
            raise SchemeError(
                f"auto.candidates has {searched[0]}, whose grids need a Hessian, and auto."
                f"sensitivity={KLD} rounds to nearest without one: use {RELATIVE}, or other grids."
            )
        if not math.isfinite(self.bits) or self.bits <= 0:
            raise SchemeError(f"bits={self.bits} is no number of bits per weight above 0.")

    @property
    def every(self) -> tuple[Scheme, ...]:
        """The schemes that layers may have, as Scheme.every."""
        return self.candidates

    @property
    def name(self) -> str:
        """Short name for tables and files: auto3.25, auto3.25_kld_fused, auto3.25_head_w8g32."""
        words = [f"auto{self.bits:g}", *[self.sensitivity] * (self.sensitivity != RELATIVE)]
        words += ["fused"] * self.fused
        own = [f"{OUTSIDE[what]}{each.name}" for what, each in self.outside.items()]
        return "".join(["_".join(words), *own])

    @property
    def outside(self) -> dict[str, Scheme]:
        """The schemes of what is quantized outside the blocks, as Scheme.outside."""
        found = {what: getattr(self, what) for what in OUTSIDE}
        return {what: own for what, own in found.items() if own is not None}

    def budget(self, weights: int) -> int:
        """Most stored bits of layers with so many weights."""
        return math.floor(self.bits * weights)

    def refuses(self, transforms: Sequence[str]) -> str | None:
        """Return why layers cannot be measured before these transforms; None: they can."""
        if not transforms or self.sensitivity != KLD:
            return None
        return (
            f"auto.sensitivity={self.sensitivity} measures layers as the model has them, and "
            f"transform {transforms[0]} changes them: use sensitivity={RELATIVE}, or leave "
            "the transform out."
        )

    def require_possible(self, layers: Sequence[tuple[int, int]]) -> None:
        """Raise SchemeError for a budget that no choice meets, or that every choice does.

        layers  (outputs, inputs) of the linear layers.
        """
        weights = sum(outputs * inputs for outputs, inputs in layers)
        means = {
            each: sum(stored_bits(each, *layer) for layer in layers) / weights
            for each in self.candidates
        }
        low, high = (choose(means, key=lambda each: means[each]) for choose in (min, max))
        if not means[low] <= self.bits <= means[high]:
            wrong = "less than all" if self.bits < means[low] else "more than all"
            raise SchemeError(
                f"bits={self.bits:g} is {wrong} candidates have: they go from {low.name} with "
                f"{means[low]:.4g} to {high.name} with {means[high]:.4g} bits a weight, scales and "
                "zero-points counted; use a number between them, or other auto.candidates."
            )


# What a cell may ask of its layers.
AskedScheme: TypeAlias = AnyScheme | Allocation


def budget_of(name: str) -> float | None:
    """Return the bits in the name of an allocation: 3.25 of auto3.25_kld; None for other names."""
    found = re.match(r"auto([0-9.]+)(_|$)", name)
    return None if found is None else float(found[1])


def stored_bits(scheme: Scheme, outputs: int, inputs: int) -> int:
    """Stored bits of a layer: codes, scales, zero-points."""
    return outputs * (inputs * scheme.bits + scheme.overhead(inputs))
