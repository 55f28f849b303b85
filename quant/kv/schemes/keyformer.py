"""Keyformer (arXiv 2403.09054): scores from logits with Gumbel noise at a rising temperature.

The score of token i grows at every query by exp((x_i + g_i) / tau) / sum_j exp((x_j + g_j) / tau)
over the tokens held, with logits x and noise g drawn anew. tau rises from `first` to `last` in
equal steps over the context. The whole context is taken as generated, token by token, and queries
that share a key add up: our reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from quant.kv.base import KvScheme, Shape
from quant.kv.selected import Selected, require_share, solve_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from quant.kv.selected import Draws


NAME = "keyformer"


@dataclass(frozen=True)
class Options:
    """recent  share of the tokens held that are the newest; the others are key tokens.

    first, last  temperatures at the beginning and the end of the context.
    seed         of the noise.
    """

    recent: float = 0.3
    first: float = 1.0
    last: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_share(self.recent)
        for name in ("first", "last"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} is no temperature; use 1 or more.")


def scores(
    logits: Tensor, _weights: Tensor, time: int, draws: Draws, first: float, step: float
) -> Tensor:
    """The softmax of noisy logits at the temperature of the time."""
    noise = draws(tuple(logits.shape)).to(logits.device)
    return ((logits + noise) / (first + step * time)).softmax(-1).sum(1)


def solve(options: Options, shape: Shape, length: int, budget: float) -> Selected:
    """As many tokens as fit."""
    step = (options.last - options.first) / length
    scored = partial(scores, first=options.first, step=step)
    return solve_tokens(NAME, options.recent, scored, shape, length, budget, options.seed)


SCHEME = KvScheme(
    NAME,
    "Keyformer",
    solve,
    Options,
    source="arXiv 2403.09054",
    copies=5,
    reading="Keyformer: without its prompt phase, our reading (docs/methods/kv_cache.md)",
)
