"""Key-value caches decoded token by token: a cache of transformers that really rounds and evicts.

Loops over single groups in float64, and nothing of quant.kv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def round_group(numbers: np.ndarray, bits: int) -> np.ndarray:
    """One group, with a scale and a zero-point in float16."""
    levels = 2**bits - 1
    zero = float(half(numbers.min()))
    scale = float(half((numbers.max() - numbers.min()) / levels))
    found = []
    for number in numbers:
        code = 0 if scale == 0 else int(np.clip(np.rint((number - zero) / scale), 0, levels))
        found.append(zero + scale * code)
    return np.array(found)


def half(numbers: np.ndarray) -> np.ndarray:
    """Rounded to float16, from float32 as torch does it."""
    return numbers.astype(np.float32).astype(np.float16).astype(np.float64)


@dataclass
class Rule:
    """Tokens are rounded when `after` newer ones are there, `block` at a time.

    axis  "token" (groups of channels) or "channel" (groups of tokens).
    """

    bits: int
    group: int
    axis: str
    after: int
    block: int = 1
    rotated: bool = False


class Store:
    """One head of keys or of values: the numbers of every token, as they are held now."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self.tokens: list[np.ndarray] = []
        self.done = [0] * len(rules)

    def add(self, token: np.ndarray) -> None:
        self.tokens.append(half(token))
        for number, rule in enumerate(self.rules):
            while len(self.tokens) - self.done[number] >= rule.after + rule.block:
                self._round(rule, self.done[number])
                self.done[number] += rule.block

    def _round(self, rule: Rule, first: int) -> None:
        block = np.stack(self.tokens[first : first + rule.block])
        matrix = walsh(block.shape[1]) if rule.rotated else np.eye(block.shape[1])
        block = block @ matrix
        if rule.axis == "token":
            for row in block:
                for start in range(0, len(row), rule.group):
                    part = slice(start, start + rule.group)
                    row[part] = round_group(row[part], rule.bits)
        else:
            for channel in range(block.shape[1]):
                for start in range(0, rule.block, rule.group):
                    part = slice(start, start + rule.group)
                    block[part, channel] = round_group(block[part, channel], rule.bits)
        for row, token in enumerate(block @ matrix.T):
            self.tokens[first + row] = token

    def bits(self) -> int:
        """All that is held, number by number: codes, scales, zero-points, 16 bits each."""
        total, channels = 0, len(self.tokens[0])
        for place in range(len(self.tokens)):
            steps = [r for r, done in zip(self.rules, self.done, strict=True) if place < done]
            if not steps:
                total += 16 * channels
                continue
            rule = steps[-1]
            total += rule.bits * channels
            if rule.axis == "token":
                total += 32 * (channels // rule.group)
            elif place % rule.group == 0:
                total += 32 * channels
        return total


def walsh(size: int) -> np.ndarray:
    """Entry (i, j) is (-1)^(bits that i and j share) / sqrt(size)."""
    signs = [[(-1) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]
    return np.array(signs) / np.sqrt(size)


class RoundedLayer(DynamicLayer):
    """What a query sees: the cache as it was left, and its own key and value in float16."""

    def __init__(self, keys: list[Rule], values: list[Rule]) -> None:
        super().__init__()
        self.rules = keys, values
        self.stores: list[list[Store]] = []

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
        if not self.stores:
            self.lazy_initialization(key_states, value_states)
            self.stores = [[Store(r) for _ in range(key_states.shape[1])] for r in self.rules]
        assert key_states.shape[2] == 1
        seen = []
        for stores, new in zip(self.stores, (key_states, value_states), strict=True):
            heads = []
            for store, token in zip(stores, new[0, :, 0].double().numpy(), strict=True):
                own = half(token)
                heads.append(np.stack([*store.tokens, own]))
                store.add(token)
            seen.append(torch.tensor(np.stack(heads))[None].to(new.dtype))
        self.keys, self.values = seen
        return self.keys, self.values


@torch.no_grad()
def decode(model: Any, ids: torch.Tensor, layer: Callable[[], DynamicLayer]) -> tuple[Any, Any]:
    """Logits [tokens, vocabulary] of ids [tokens], one token a pass, and the cache."""
    cache = DynamicCache()
    cache.layers = [layer() for _ in range(model.config.get_text_config().num_hidden_layers)]
    cache.layer_class_to_replicate = None
    found = []
    for place, token in enumerate(ids):
        # Positions are given, because an evicting cache is shorter than the text.
        where = {} if model.config.model_type == "bloom" else {
            "position_ids": torch.tensor([[place]])
        }  # fmt: skip
        out = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True, **where,
                    output_attentions=hasattr(cache.layers[0], "choose"))  # fmt: skip
        found.append(out.logits[0, -1])
        for each, weights in zip(cache.layers, out.attentions or (), strict=False):
            if hasattr(each, "choose"):
                each.choose(weights[0, :, 0].double().numpy(), place)
    return torch.stack(found), cache


class HeavyLayer(DynamicLayer):
    """Keeps `size` tokens a head: `recent` newest, and those of the largest summed attention."""

    def __init__(self, size: int, recent: int) -> None:
        super().__init__()
        self.size, self.recent = size, recent
        self.at: list[list[int]] = []
        self.sums: list[list[float]] = []

    def update(self, key_states: Any, value_states: Any, *args: Any, **more: Any) -> Any:
        half = [each.half().to(each.dtype) for each in (key_states, value_states)]
        return super().update(*half, *args, **more)

    def choose(self, weights: np.ndarray, place: int) -> None:
        """weights [query heads, tokens seen] of the token at `place`."""
        heads = self.keys.shape[1]
        if not self.at:
            self.at, self.sums = [[] for _ in range(heads)], [[] for _ in range(heads)]
        kept = []
        for head in range(heads):
            shared = weights.reshape(heads, -1, weights.shape[-1])[head].sum(0)
            at, sums = self.at[head], self.sums[head]
            at.append(place)
            sums.append(0.0)
            for number, more in enumerate(shared):
                sums[number] += float(more)
            if len(at) > self.size:
                old = [n for n, each in enumerate(at) if each <= place - self.recent]
                worst = min(old, key=lambda n: sums[n])
                del at[worst], sums[worst]
                kept.append([n for n in range(len(at) + 1) if n != worst])
            else:
                kept.append(list(range(len(at))))
        index = torch.tensor(kept)[None, :, :, None]
        self.keys = self.keys.gather(2, index.expand(-1, -1, -1, self.keys.shape[-1]))
        self.values = self.values.gather(2, index.expand(-1, -1, -1, self.values.shape[-1]))


def select(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    slopes: np.ndarray | None,
    size: int,
    recent: int,
    score: Callable[[np.ndarray, int, list[int]], np.ndarray],
) -> np.ndarray:
    """Attention [group, tokens, channels] of the queries that share one key head.

    query [group, tokens, channels], scaled; slopes [group]: the bias a position. score(logits
    [group, held], time, places) -> [held]: what each held token gets more; places are those of the
    cache: a token takes the place of the one that was evicted before it.
    """
    group, tokens, _ = query.shape
    places: list[int] = []  # position of the token in each place
    sums: list[float] = []
    free = None
    out = np.zeros((group, tokens, value.shape[1]))
    for time in range(tokens):
        if free is None:
            places.append(time)
            sums.append(0.0)
        else:
            places[free], sums[free] = time, 0.0
        logits = np.array([[query[g, time] @ key[p] for p in places] for g in range(group)])
        if slopes is not None:
            logits += np.array([[slope * p for p in places] for slope in slopes])
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        out[:, time] = weights @ value[places]
        for number, more in enumerate(score(logits, time, places)):
            sums[number] += more
        if len(places) > size:
            old = [n for n, p in enumerate(places) if p <= time - recent]
            free = min(old, key=lambda n: sums[n])
    return out
