"""Check token ids against the vocabulary of a model before the model is called.

An id beyond the embedding is an IndexError without a cause, and on a GPU an assertion that ends the
process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.data.specials import spelled
from harness.errors import BitsweepError

if TYPE_CHECKING:
    from harness.data.protocols import TokenWindows


class VocabularyError(BitsweepError):
    """A token id is not in the model's vocabulary."""


def size_of(model: Any) -> int:
    """Vocabulary size of a Hugging Face causal LM."""
    return int(model.get_input_embeddings().num_embeddings)


def check_windows(found: TokenWindows, tokenizer: Any, model: Any) -> None:
    """Raise VocabularyError for the first token of the windows that the model does not have."""
    where = f"protocol {found.protocol.id}, {found.source}"
    size = size_of(model)
    for window in found.windows:
        if int(window.max()) >= size or int(window.min()) < 0:
            require_known(window.tolist(), tokenizer, size, where)


def require_known(ids: Iterable[int], tokenizer: Any, size: int, where: str) -> None:
    """Raise VocabularyError, beginning with `where`, for the first id that is not below `size`."""
    wrong = unknown(ids, size)
    if wrong:
        raise VocabularyError(
            f"{where}: the tokenizer gives {spelled(tokenizer, wrong[0])!r} (id {wrong[0]}), but "
            f"the model knows only {size} tokens; use the tokenizer that belongs to the model"
        )


def unknown(ids: Iterable[int], size: int) -> Sequence[int]:
    """The ids that are not below `size`."""
    return [token for token in ids if not 0 <= token < size]
