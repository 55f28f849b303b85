"""Special tokens: the one rule for every stream of ids that is scored, continued or calibrated on.

1. What the tokenizer puts before a text by itself stands there, once: a text that spells BOS out
   does not get a second one.
2. What the tokenizer puts behind a text (EOS, SEP) is left out. It is not text: scored, it would be
   part of a continuation or document, and in a prompt or a window it would stand in the middle.
3. Documents, and windows that are packed from documents, begin with BOS wherever the tokenizer has
   one (`encode(..., bos=True)`).
4. A prompt of white space alone is empty, and what follows stands behind BOS, or behind EOS where
   there is no BOS (`blank_prompt`).

Special tokens that a text spells out inside are part of the text and stay. `Tally` says which
special tokens a stream held, for records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

# In every key of a text: raised when the rule gives other ids for the same text.
VERSION = 2

_PROBE = "a"


@dataclass(frozen=True)
class Specials:
    """What a tokenizer puts around every text by itself, and its BOS; ids."""

    before: tuple[int, ...]
    behind: tuple[int, ...]
    bos: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> Specials:
        """Found by encoding one letter with and without special tokens."""
        whole = list(tokenizer(_PROBE, verbose=False)["input_ids"])
        text = list(tokenizer(_PROBE, verbose=False, add_special_tokens=False)["input_ids"])
        places = range(len(whole) - len(text), -1, -1)
        start = next((n for n in places if text and whole[n : n + len(text)] == text), None)
        if start is None:  # the letter is another token there: what is special says its name
            special = set(getattr(tokenizer, "all_special_ids", ()))
            known = [n for n, token in enumerate(whole) if token not in special]
            start, end = (known[0], known[-1] + 1) if known else (len(whole), len(whole))
        else:
            end = start + len(text)
        return cls(tuple(whole[:start]), tuple(whole[end:]), tokenizer.bos_token_id)

    def trim(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text, which the tokenizer gave with its special tokens, by the rule."""
        found = list(ids)
        if self.behind and tuple(found[-len(self.behind) :]) == self.behind:
            del found[-len(self.behind) :]
        lead = self.before or (() if self.bos is None else (self.bos,))
        size = len(lead)
        while size and tuple(found[: 2 * size]) == lead + lead:
            del found[:size]
        return found

    def encode(self, tokenizer: Any, text: str, *, bos: bool = False) -> list[int]:
        """The ids of a text; with bos behind BOS, if the tokenizer has one but omits it."""
        ids = self.trim(tokenizer(text, verbose=False)["input_ids"])
        if not bos or self.bos is None or ids[:1] == [self.bos]:
            return ids
        return [self.bos, *ids]

    def blank_prompt(self, eos: int | None) -> list[int]:
        """What stands in the place of an empty prompt: BOS, or else EOS; empty without either."""
        return [token for token in (self.bos, eos) if token is not None][:1]


@dataclass
class Tally:
    """Counts the special tokens of streams."""

    tokenizer: Any
    specials: Specials
    _times: Counter[int] = field(default_factory=Counter)
    _first: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        own = {*self.specials.before, *self.specials.behind, self.specials.bos}
        self._special = own | set(getattr(self.tokenizer, "all_special_ids", None) or ())

    def add(self, streams: Iterable[Sequence[int]]) -> None:
        """Count those of more streams of ids."""
        for ids in streams:
            self._times.update(token for token in ids if token in self._special)
            self._first.update(token for token in ids[:1] if token in self._special)

    def said(self) -> str:
        """In words: "<s> 200 times (200 first)", "none"."""
        parts = [
            f"{spelled(self.tokenizer, token)} {count} time{'s' * (count != 1)}"
            f" ({self._first[token]} first)"
            for token, count in sorted(self._times.items())
        ]
        left = " ".join(spelled(self.tokenizer, token) for token in self.specials.behind)
        found = parts or ["none"]
        return ", ".join([*found, f"{left} behind texts left out"] if left else found)


def spelled(tokenizer: Any, token: int) -> str:
    """A token as its tokenizer writes it; its id where it has no name."""
    name = getattr(tokenizer, "convert_ids_to_tokens", lambda _: None)(token)
    return name if isinstance(name, str) else str(token)
