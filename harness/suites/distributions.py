"""Next-token distributions of two models, compared position by position in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from harness.errors import BitsweepError
from harness.suites.at_once import CACHED_LOGITS


class DivergenceError(BitsweepError):
    """Distributions that cannot be compared."""


@dataclass(frozen=True)
class Compared:
    """What is known of consecutive positions; all but `flipped` float64 [positions].

    divergence  KL(first || second), nats.
    flipped     bool: the most likely tokens differ.
    confidence  probability that the first model gives its most likely token.
    certain     a lower bound, where the divergence is an estimate (harness.suites.compressed).
    variance    of the estimate.
    """

    divergence: Tensor
    flipped: Tensor
    confidence: Tensor
    certain: Tensor | None = None
    variance: Tensor | None = None


def compare(first: Tensor, second: Tensor) -> Compared:
    """Compare logits [positions, vocabulary] of two models.

    Raises DivergenceError for logits that are not finite or differ in shape.
    """
    require_one_shape(first.shape, second.shape)
    found = [_compare(*some) for some in zip(in_cache(first), in_cache(second), strict=True)]
    return joined(found)


def _compare(first: Tensor, second: Tensor) -> Compared:
    one, other = first.double().log_softmax(-1), second.double().log_softmax(-1)
    largest, token = one.max(-1)
    flipped = token != other.argmax(-1)
    difference = torch.sub(one, other, out=other)
    value = one.exp_().mul_(difference).sum(-1)
    require_finite(value)
    return Compared(value.cpu(), flipped.cpu(), largest.exp().cpu())


def in_cache(logits: Tensor) -> Sequence[Tensor]:
    """Consecutive rows of logits, on a processor so few that they stay in its cache in float64."""
    rows = max(1, CACHED_LOGITS // logits.shape[-1]) if logits.device.type == "cpu" else 0
    return logits.split(rows) if rows else [logits]


def joined(parts: Sequence[Compared]) -> Compared:
    """Consecutive positions, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    every: dict[str, Any] = {
        each.name: [getattr(part, each.name) for part in parts] for each in fields(Compared)
    }
    joint: dict[str, Any] = {
        name: None if held[0] is None else torch.cat(held) for name, held in every.items()
    }
    return Compared(**joint)


def require_one_shape(first: Sequence[int], second: Sequence[int]) -> None:
    """Raise DivergenceError unless the shapes of two models' logits are the same."""
    if tuple(first) != tuple(second):
        raise DivergenceError(
            f"logits of shapes {list(first)} and {list(second)} cannot be compared: "
            "the two models have different vocabularies"
        )


def require_finite(values: Tensor) -> None:
    """Raise DivergenceError unless all values of positions are finite."""
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise DivergenceError(
            f"{bad} of {len(values)} positions have no finite divergence: logits are NaN or "
            "infinite; use another dtype (model.dtype=float32)"
        )
