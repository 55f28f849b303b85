"""A cache whose tokens fall from step to step as they age: full precision first, then fewer bits.

Which step a token is in depends on its position and on the time alone, never on what it holds. So a
layer can be computed for all tokens at once: of every step there is one version of keys and values,
and a query reads each token in the version that it has at that time. Tokens are rounded again from
what the step before held, because the original is gone by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from quant.kv.base import ATTENDED, QUERIES, STORED_BITS, Heads, Shape
from quant.kv.rounding import Rounding, stored

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A state that tokens enter in blocks, when `after` newer ones are in the states before it.

    Of t tokens, floor((t - after) / block) * block are in this step or in a later one.
    """

    rounding: Rounding
    after: int
    block: int = 1

    def count(self, tokens: int) -> int:
        """How many of the oldest tokens are in this step or a later one."""
        return max(0, tokens - self.after) // self.block * self.block


@dataclass(frozen=True)
class Stepped:
    """Keys and values by steps, the newest tokens in full precision before them.

    exact  the newest tokens keep the model's own dtype; otherwise that of `Heads.stored`.
    """

    shape: Shape
    keys: tuple[Step, ...]
    values: tuple[Step, ...]
    words: list[str]
    exact: bool = False

    def bits(self, tokens: int) -> float:
        """The mean over the last cycle of blocks, because tokens of a block wait for it to fill."""
        cycle = math.lcm(*(step.block for step in (*self.keys, *self.values)))
        times = range(max(0, tokens - cycle) + 1, tokens + 1)
        held = sum(
            channels * _held(steps, time)
            for time in times
            for channels, steps in ((self.shape.keys, self.keys), (self.shape.values, self.values))
        )
        return held / (self.shape.numbers * sum(times))

    def attend(self, heads: Heads) -> Tensor:
        import torch

        first = [each if self.exact else stored(each, heads.stored, heads.layer)
                 for each in (heads.key, heads.value)]  # fmt: skip
        keys, values = _versions(first[0], self.keys), _versions(first[1], self.values)
        sharing, group, tokens, _ = heads.query.shape
        out = heads.query.new_empty(sharing, group, tokens, values[0].shape[-1])
        rows = ATTENDED // (sharing * group * tokens)
        rows = min(max(rows, QUERIES[0]), QUERIES[1])
        query = heads.query * heads.scaling
        for start in range(0, tokens, rows):
            stop = min(start + rows, tokens)
            asked = query[:, :, start:stop].flatten(1, 2)
            logits = query.new_full((sharing, group, stop - start, stop), -math.inf)
            for number, low, high, mask in _segments(self.keys, start, stop, query.device):
                found = (asked @ keys[number][:, low:high].mT).view(sharing, group, -1, high - low)
                if mask is not None:
                    found = found.where(mask, logits[..., low:high])
                logits[..., low:high] = found
            if heads.bias is not None:
                logits += heads.bias[..., :stop]
            weights = logits.softmax(-1)
            parts = []
            for number, low, high, mask in _segments(self.values, start, stop, query.device):
                part = weights[..., low:high]
                part = part if mask is None else part * mask
                parts.append(part.flatten(1, 2) @ values[number][:, low:high])
            whole = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
            out[:, :, start:stop] = whole.view(sharing, group, stop - start, -1)
        return out


def _held(steps: Sequence[Step], tokens: int) -> float:
    """Bits of one channel of so many tokens."""
    counts = [tokens, *(step.count(tokens) for step in steps), 0]
    costs = [STORED_BITS, *(step.rounding.cost for step in steps)]
    return sum(
        cost * (n - after) for cost, n, after in zip(costs, counts, counts[1:], strict=False)
    )


def _versions(x: Tensor, steps: Sequence[Step]) -> list[Tensor]:
    found = [x]
    for step in steps:
        found.append(step.rounding.read(found[-1]))
    return found


def _segments(
    steps: Sequence[Step], start: int, stop: int, device: torch.device
) -> Iterator[tuple[int, int, int, Tensor | None]]:
    """For queries start .. stop, which keys they read in which version.

    Yields the number of a version, the first key and the one behind the last, and a mask
    [queries, keys] of the pairs for which that is so; None: all of them.
    """
    import torch

    # counts[v][i]: how many of the oldest keys query start + i reads in version v or a later one;
    # it sees itself besides the tokens of the cache.
    times = range(start, stop)
    counts = [[time + 1 for time in times], *([s.count(t) for t in times] for s in steps)]
    counts.append([0] * len(times))
    for number, (upper, lower) in enumerate(pairwise(counts)):
        low, high = lower[0], upper[-1]
        if low >= high:
            continue
        solid = min(lower[-1], high)  # from here on, no query has it in a later version
        mixed = max(upper[0], solid)  # from here on, some query has it in an earlier version
        for begin, end in ((low, solid), (solid, mixed), (mixed, high)):
            if begin >= end:
                continue
            mask = None
            if (begin, end) != (solid, mixed):
                at = torch.arange(begin, end, device=device)
                ends = torch.tensor([lower, upper], device=device)[..., None]
                mask = (at >= ends[0]) & (at < ends[1])
            yield number, begin, end, mask


def largest(make: Callable[[int], Stepped], length: int, budget: float, most: int) -> int | None:
    """The largest number up to `most` whose cache keeps to the budget; None if 0 does not.

    More has to take more bits.
    """
    low, high = 0, most
    if make(0).bits(length) > budget:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if make(middle).bits(length) <= budget:
            low = middle
        else:
            high = middle - 1
    return low
