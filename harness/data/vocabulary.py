"""Ids that a tokenizer gives and a model does not have: found before the model is called.

A model looks ids up in its embedding; beyond its end that is an IndexError without a name, and on a
GPU an assertion that ends the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.data.specials import spelled
from harness.errors import BitsweepError

if TYPE_CHECKING:
    from harness.data.protocols import TokenWindows


class VocabularyError(BitsweepError):
    """A tokenizer gives ids that the model does not have."""


def size_of(model: Any) -> int:
    """How many ids a Hugging Face causal LM has."""
    return int(model.get_input_embeddings().num_embeddings)


def check_windows(found: TokenWindows, tokenizer: Any, model: Any) -> None:
    """VocabularyError naming the first token of the windows that the model does not have."""
    where = f"protocol {found.protocol.id}, {found.source}"
    size = size_of(model)
    for window in found.windows:
        if int(window.max()) >= size or int(window.min()) < 0:
            require_known(window.tolist(), tokenizer, size, where)


def require_known(ids: Iterable[int], tokenizer: Any, size: int, where: str) -> None:
    """VocabularyError naming `where` and the first of the ids that is not below `size`."""
    wrong = unknown(ids, size)
    if wrong:
        raise VocabularyError(
            f"{where}: the tokenizer gives {spelled(tokenizer, wrong[0])!r} (id {wrong[0]}), but "
            f"the model knows only {size} tokens; use the tokenizer that belongs to the model"
        )


def unknown(ids: Iterable[int], size: int) -> Sequence[int]:
    """The ids that an embedding of `size` rows does not have."""
    return [token for token in ids if not 0 <= token < size]
