"""Special tokens: the one rule for all ids that are scored, continued or used for calibration.

1. Tokens that the tokenizer adds before a text stay, once: a text that spells out BOS gets no
   second one.
2. Tokens that the tokenizer adds after a text (EOS, SEP) are removed. They are not text: they would
   be scored as part of a continuation or document, or stand in the middle of a prompt or window.
3. Documents, and windows packed from documents, begin with BOS if the tokenizer has one
   (`encode(..., bos=True)`).
4. A prompt of white space alone is empty, and is replaced by BOS, or by EOS if there is no BOS
   (`blank_prompt`).

Special tokens that are spelled out within a text are part of the text and stay. `Tally` counts the
special tokens of streams, for records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

# Part of every text's key: raise it if the rule gives other ids for the same text.
VERSION = 2

_PROBE = "a"


@dataclass(frozen=True)
class Specials:
    """Ids that a tokenizer adds before and after every text, and its BOS."""

    before: tuple[int, ...]
    behind: tuple[int, ...]
    bos: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> Specials:
        """Determine them by encoding one letter with and without special tokens."""
        whole = list(tokenizer(_PROBE, verbose=False)["input_ids"])
        text = list(tokenizer(_PROBE, verbose=False, add_special_tokens=False)["input_ids"])
        places = range(len(whole) - len(text), -1, -1)
        start = next((n for n in places if text and whole[n : n + len(text)] == text), None)
        if start is None:  # the letter became another token: go by the special ids
            special = set(getattr(tokenizer, "all_special_ids", ()))
            known = [n for n, token in enumerate(whole) if token not in special]
            start, end = (known[0], known[-1] + 1) if known else (len(whole), len(whole))
        else:
            end = start + len(text)
        return cls(tuple(whole[:start]), tuple(whole[end:]), tokenizer.bos_token_id)

    def trim(self, ids: Sequence[int]) -> list[int]:
        """Apply the rule to the ids of a text that was encoded with special tokens."""
        found = list(ids)
        if self.behind and tuple(found[-len(self.behind) :]) == self.behind:
            del found[-len(self.behind) :]
        lead = self.before or (() if self.bos is None else (self.bos,))
        size = len(lead)
        while size and tuple(found[: 2 * size]) == lead + lead:
            del found[:size]
        return found

    def encode(self, tokenizer: Any, text: str, *, bos: bool = False) -> list[int]:
        """The ids of a text; with `bos`, BOS is put first if the tokenizer has one but omits it."""
        ids = self.trim(tokenizer(text, verbose=False)["input_ids"])
        if not bos or self.bos is None or ids[:1] == [self.bos]:
            return ids
        return [self.bos, *ids]

    def blank_prompt(self, eos: int | None) -> list[int]:
        """The ids that replace an empty prompt: BOS, else EOS, else none."""
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
        """Count the special tokens of more streams of ids."""
        for ids in streams:
            self._times.update(token for token in ids if token in self._special)
            self._first.update(token for token in ids[:1] if token in self._special)

    def said(self) -> str:
        """The counts in words: "<s> 200 times (200 first)", "none"."""
        parts = [
            f"{spelled(self.tokenizer, token)} {count} time{'s' * (count != 1)}"
            f" ({self._first[token]} first)"
            for token, count in sorted(self._times.items())
        ]
        left = " ".join(spelled(self.tokenizer, token) for token in self.specials.behind)
        found = parts or ["none"]
        return ", ".join([*found, f"{left} behind texts left out"] if left else found)


def spelled(tokenizer: Any, token: int) -> str:
    """A token as its tokenizer writes it, or its id if it has no name."""
    name = getattr(tokenizer, "convert_ids_to_tokens", lambda _: None)(token)
    return name if isinstance(name, str) else str(token)
