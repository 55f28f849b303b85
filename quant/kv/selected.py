"""A cache that holds some of the tokens in full precision: the newest, and those of high scores.

Every head of keys chooses for itself. A query sees the cache and its own token; what it attends to
adds to scores, and if there are then too many tokens, the one of the lowest score that is not among
the newest is left out for good. Tokens are taken one by one, layer by layer: a layer's choice at a
time depends on its own earlier queries alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.kv.base import STORED_BITS, Heads, KvCacheError, Shape, beyond
from quant.kv.rounding import stored
from quant.kv.windowed import ADVICE

if TYPE_CHECKING:
    from torch import Tensor

    # scores(logits [heads, group, tokens held], their softmax, time, layer's draws) -> what each
    # token held gets more: [heads, tokens held].
    Scores = Callable[[Tensor, Tensor, int, "Draws"], Tensor]
    Draws = Callable[[tuple[int, ...]], Tensor]

SCORE_BITS, POSITION_BITS = 32, 32  # of a token held, in every head


@dataclass(frozen=True)
class Selected:
    """So many tokens, `recent` of them the newest; scores as above.

    seed  of the draws, together with the number of the layer.
    """

    shape: Shape
    tokens: int
    recent: int
    scores: Scores
    seed: int = 0

    @property
    def words(self) -> list[str]:
        return [f"{self.tokens} tokens", f"newest {self.recent} of them"]

    def bits(self, tokens: int) -> float:
        return min(self.tokens, tokens) * _cost(self.shape) / (tokens * self.shape.numbers)

    def attend(self, heads: Heads) -> Tensor:
        import torch

        key, value = (stored(x, heads.stored, heads.layer) for x in (heads.key, heads.value))
        sharing, group, tokens, _ = heads.query.shape
        places = min(self.tokens + 1, tokens)  # of the tokens held and the query's own
        keys = key.new_zeros(sharing, places, key.shape[-1])
        values = value.new_zeros(sharing, places, value.shape[-1])
        scores = key.new_zeros(sharing, places)
        at = torch.zeros(sharing, places, dtype=torch.long, device=key.device)
        every = torch.arange(sharing, device=key.device)
        query = heads.query * heads.scaling
        out = query.new_empty(sharing, group, tokens, value.shape[-1])
        draws = gumbel_draws(self.seed, heads.layer)
        free: Tensor | int = 0
        for time in range(tokens):
            held = min(time + 1, places)
            keys[every, free], values[every, free] = key[:, time], value[:, time]
            scores[every, free], at[every, free] = 0.0, time
            logits = query[:, :, time] @ keys[:, :held].mT
            if heads.bias is not None:
                bias = heads.bias.expand(sharing, group, 1, -1)[:, :, 0]
                logits = logits + bias.gather(-1, at[:, None, :held].expand(-1, group, -1))
            weights = logits.softmax(-1)
            out[:, :, time] = weights @ values[:, :held]
            scores[:, :held] += self.scores(logits, weights, time, draws)
            if held < places:
                free = held
            else:
                free = scores.masked_fill(at > time - self.recent, torch.inf).argmin(-1)
        return out


def gumbel_draws(seed: int, layer: int) -> Draws:
    """Draws from the standard Gumbel distribution, in order, for one layer of one window."""
    import torch

    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer)

    def draw(size: tuple[int, ...]) -> Tensor:
        drawn = torch.empty(size).exponential_(generator=generator)
        return -drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log_()

    return draw


def solve_tokens(
    name: str, share: float, scores: Scores, shape: Shape, length: int, budget: float, seed: int = 0
) -> Selected:
    """As many tokens as the budget has room for at the context, `share` of them the newest.

    Raises KvCacheError for less than two, of which one is the newest.
    """
    tokens = int(budget * length * shape.numbers / _cost(shape))
    tokens = min(tokens, length)
    if tokens < 2:
        least = 2 * _cost(shape) / (length * shape.numbers)
        raise KvCacheError(beyond(name, budget, length, least, "two tokens", ADVICE))
    recent = min(max(1, round(share * tokens)), tokens - 1)
    return Selected(shape, tokens, recent, scores, seed)


def _cost(shape: Shape) -> int:
    """Bits of a token in one head."""
    return STORED_BITS * shape.numbers + SCORE_BITS + POSITION_BITS * shape.biased


def require_share(recent: float) -> None:
    """Raise ValueError unless it is a share."""
    if not 0 < recent < 1:
        raise ValueError(f"recent={recent} is no share of the tokens; use a number such as 0.5.")
