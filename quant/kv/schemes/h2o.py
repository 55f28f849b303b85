"""H2O (arXiv 2306.14048): heavy hitters, the tokens of the largest accumulated attention.

With grouped queries, the attention of all queries that share a key is added up: our reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quant.kv.base import KvScheme, Shape
from quant.kv.selected import Selected, require_share, solve_tokens

if TYPE_CHECKING:
    from torch import Tensor

NAME = "h2o"


@dataclass(frozen=True)
class Options:
    """recent  share of the tokens held that are the newest; the others are heavy hitters."""

    recent: float = 0.5

    def __post_init__(self) -> None:
        require_share(self.recent)


def scores(_logits: Tensor, weights: Tensor, _time: int, _draws: Any) -> Tensor:
    """The attention that each token gets, of all queries that share it."""
    return weights.sum(1)


def solve(options: Options, shape: Shape, length: int, budget: float) -> Selected:
    """As many tokens as fit."""
    return solve_tokens(NAME, options.recent, scores, shape, length, budget)


SCHEME = KvScheme(NAME, "H2O", solve, Options, source="arXiv 2306.14048", copies=5)
