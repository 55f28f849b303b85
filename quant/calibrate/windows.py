"""Check calibration windows against a model, and group them into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.embedding import rows_and_device
from quant.errors import CalibrationError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True)
class Batch:
    """Windows of equal length that run through the model together.

    windows  their positions in the calibration list.
    tokens   int64 [batch, tokens].
    """

    windows: tuple[int, ...]
    tokens: Tensor


def check_windows(windows: Sequence[Tensor], model: PreTrainedModel) -> None:
    """Check that every window is a vector of at least 2 token ids that the model can read.

    Raises CalibrationError, naming the first invalid window (counted from 0), or if there is no
    window.
    """
    if not windows:
        raise CalibrationError(
            "there is no calibration window: the text is shorter than one window; use a longer "
            "text, shorter windows, or method=rtn, which needs none."
        )
    vocabulary, _ = rows_and_device(model)
    config = model.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    for index, window in enumerate(windows):
        name = f"calibration window {index}"
        if window.dim() != 1 or window.dtype not in _INTEGERS:
            raise CalibrationError(
                f"{name} is {window.dtype} of shape {list(window.shape)}; each window must be a "
                "vector of integer token ids [tokens]."
            )
        length = window.shape[0]
        if length < 2:
            raise CalibrationError(
                f"{name} is too short: {length} token(s), at least 2 are needed; "
                "use a longer text or drop the window."
            )
        if isinstance(positions, int) and length > positions:
            raise CalibrationError(
                f"{name} has {length} tokens but the model has {positions} positions; "
                f"cut windows to at most {positions} tokens."
            )
        low, high = int(window.min()), int(window.max())
        if low < 0 or high >= vocabulary:
            raise CalibrationError(
                f"{name} holds token id {low if low < 0 else high}, outside of the model's "
                f"vocabulary of {vocabulary}; tokenize with the tokenizer of this model."
            )


def make_batches(windows: Sequence[Tensor], batch_tokens: int) -> list[Batch]:
    """Group windows of equal length into batches of up to batch_tokens tokens (or one window).

    Windows are not padded, because padding tokens would be part of the calibration. Batches are in
    the order of their first windows.
    """
    by_length: dict[int, list[int]] = {}
    for index, window in enumerate(windows):
        by_length.setdefault(window.shape[0], []).append(index)
    batches = []
    for length, members in by_length.items():
        size = max(1, batch_tokens // length)
        for begin in range(0, len(members), size):
            chosen = tuple(members[begin : begin + size])
            batches.append(Batch(chosen, torch.stack([windows[i].long() for i in chosen])))
    return sorted(batches, key=lambda batch: batch.windows)
