"""Functions that turn rows of text into token windows; protocols (harness.data.protocols) use them.

Each is a pure function of rows, tokenizer, window length and seed. Random windows are drawn by
Python's `random.Random` in the order of the GPTQ authors' code. The order is part of the protocol:
another one gives other windows. Special tokens follow `harness.data.specials`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from harness.data.specials import Specials
from harness.data.texts import ProtocolError

Cut = tuple[list[torch.Tensor], list[str]]
"""(windows, rows): windows are int64 of shape [tokens], made from these rows."""


def disjoint(
    rows: Sequence[str], tokenizer: Any, length: int, *, join: str, most: int | None = None
) -> Cut:
    """Join all rows, tokenize once, return consecutive windows without the incomplete last one.

    most  maximum number of windows. Raises ProtocolError if the text fills none.
    """
    ids = _stream(rows, tokenizer, join)
    count = len(ids) // length
    if count == 0:
        raise ProtocolError(
            f"the text has only {len(ids)} tokens, which do not fill one window of {length}; "
            "name a longer text or set a smaller model.context"
        )
    found = ids[: count * length].split(length)[:most]
    return list(found), list(rows)


def crops(
    rows: Sequence[str], tokenizer: Any, length: int, *, join: str, number: int, seed: int
) -> Cut:
    """Join all rows, tokenize once, return `number` windows at random places.

    Raises ProtocolError for a text of fewer than length + 1 tokens.
    """
    ids = _stream(rows, tokenizer, join)
    if len(ids) <= length:
        raise ProtocolError(
            f"the calibration text has only {len(ids)} tokens, too few for windows of {length}; "
            "name a longer text or set a smaller calib.length"
        )
    rng = random.Random(seed)
    starts = [rng.randint(0, len(ids) - length - 1) for _ in range(number)]
    return [ids[start : start + length] for start in starts], list(rows)


def document_crops(
    rows: Sequence[str], tokenizer: Any, length: int, *, number: int, seed: int
) -> Cut:
    """Return `number` windows, each at a random place of a random row of more than `length` tokens.

    Draws rows until one is long enough, then a place: row, row, ..., place, row, ... A row of
    exactly `length` tokens is too short (the authors' code fails on one).
    Raises ProtocolError if no row is long enough.
    """
    rng = random.Random(seed)
    specials = Specials.of(tokenizer)
    encoded: dict[int, list[int]] = {}
    longest = 0
    short: set[int] = set()
    found: list[torch.Tensor] = []
    while len(found) < number:
        row = rng.randint(0, len(rows) - 1)
        if row in short:
            continue
        ids = encoded[row] if row in encoded else specials.encode(tokenizer, rows[row])
        if len(ids) <= length:
            short.add(row)
            longest = max(longest, len(ids))
            if len(short) == len(rows):
                raise ProtocolError(
                    f"none of the {len(rows)} documents has more than {length} tokens (the longest "
                    f"has {longest}); name a text with longer documents or set a smaller window"
                )
            continue
        encoded[row] = ids
        start = rng.randint(0, len(ids) - length - 1)
        found.append(torch.tensor(ids[start : start + length], dtype=torch.int64))
    return found, list(rows)


def documents(
    rows: Sequence[str], tokenizer: Any, length: int, *, numbers: Sequence[int] | None = None
) -> Cut:
    """Return each row as one sequence, with BOS first, truncated to `length` tokens.

    numbers  positions of the rows in their file, for messages.

    Raises ProtocolError for a row without a token to predict.
    """
    found = []
    specials = Specials.of(tokenizer)
    for number, row in zip(numbers or range(len(rows)), rows, strict=True):
        ids = specials.encode(tokenizer, row, bos=True)[:length]
        if len(ids) < 2:
            raise ProtocolError(
                f"document {number} ({row[:40]!r}) has no token to predict; "
                "choose a range of documents without it"
            )
        found.append(torch.tensor(ids, dtype=torch.int64))
    return found, list(rows)


def packed(rows: Iterable[str], tokenizer: Any, length: int, *, join: str, number: int) -> Cut:
    """Return `number` windows of consecutive rows, each beginning with BOS and a row's first token.

    The last row of a window is truncated; the next window begins with the next row. Raises
    ProtocolError if there are too few rows.
    """
    found: list[torch.Tensor] = []
    used: list[str] = []
    ids: list[int] = []
    text = ""
    specials = Specials.of(tokenizer)
    for row in rows:
        used.append(row)
        text = text + join + row if text else row
        ids = specials.encode(tokenizer, text, bos=True)
        if len(ids) >= length:
            found.append(torch.tensor(ids[:length], dtype=torch.int64))
            text = ""
        if len(found) == number:
            return found, used
    raise ProtocolError(
        f"the calibration text fills only {len(found)} windows of {length} tokens, not {number}; "
        "name a longer text or ask for fewer (calib.sequences)"
    )


def random_tokens(tokenizer: Any, length: int, *, number: int, seed: int) -> Cut:
    """Return `number` windows of ids drawn uniformly from the vocabulary, after BOS.

    Special tokens are not drawn. Raises ProtocolError for a tokenizer that has no other tokens.
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    if not ordinary:
        raise ProtocolError(
            f"the tokenizer has {len(tokenizer)} tokens and all are special, so there is none to "
            "draw; choose a calibration text"
        )
    bos = Specials.of(tokenizer).bos
    lead = [] if bos is None else [bos]
    rng = random.Random(seed)
    found = []
    for _ in range(number):
        ids = [*lead, *(rng.choice(ordinary) for _ in range(length - len(lead)))]
        found.append(torch.tensor(ids, dtype=torch.int64))
    return found, []


def _stream(rows: Sequence[str], tokenizer: Any, join: str) -> torch.Tensor:
    """Join all rows and tokenize them once."""
    ids = Specials.of(tokenizer).encode(tokenizer, join.join(rows))
    return torch.tensor(ids, dtype=torch.int64)
