"""Greedy decoding at batch 1 with one operator call a token (cuda_ext.step), on a processor.

A step through the model's own forward is some hundred operators a layer, and Python between them
takes longer than the weights. Here prompt and tokens go through one operator each, over the buffers
of a static cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cuda_ext.toolchain import BuildError
from quant.decode.caches import FUSED, StaticDecoder
from quant.decode.description import Unsupported
from quant.decode.open import describe, open_step
from quant.embedding import QuantEmbedding, rows_and_device
from quant.memory.heaps import own_zeros

# Tokens that the step takes at a time. Its activations stay in the second-level cache.
TOGETHER = 64
# Tokens of a prompt up to which the step takes layers that are not packed. Its product with plain
# weights is made for one token: at 16 tokens it is ahead of the model's own forward, at 128 behind
# (docs/decoding.md), and a baseline is not to be timed on the slower way.
PLAIN_TOGETHER = 32


class FusedDecoder:
    """One sequence of a model that a step takes; what it offers: quant.decode.caches.Decoder."""

    def __init__(self, model: Any, positions: int) -> None:
        """Unsupported for a model that a step cannot take, or without compiled kernels."""
        self.mode, self.reason = FUSED, ""
        vocabulary, device = rows_and_device(model)
        if device.type != "cpu":
            raise Unsupported("the step runs on a processor")
        description = describe(model)
        most = description.most_positions
        if most is not None and positions > most:
            raise Unsupported(f"it has {most} positions, fewer than {positions}")
        # Its checks are those of a static cache, which the step writes and reads too.
        self._cache = StaticDecoder(model, positions)
        with torch.inference_mode():
            buffers = self._cache.allocate(description.kv_heads, description.width)
            try:
                self._table = model.get_input_embeddings()
                self._packed = isinstance(self._table, QuantEmbedding)
                self._rows = self._table_of_rows()
                self._step, self._spared = open_step(description, self._rows, buffers, TOGETHER)
            except BuildError as error:
                raise Unsupported(f"no compiled kernels: {error}") from error
            self.logits = torch.zeros((1, vocabulary))
            self.token = torch.zeros((1, 1), dtype=torch.int64)
        self._length = 0
        self._most = most
        self._longest = positions if description.all_packed else PLAIN_TOGETHER

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> None:
        length = self._length = prompt.shape[1]
        if length > self._longest:
            self._cache.prefill(prompt)  # writes keys and values where the step reads them
            self.logits.copy_(self._cache.logits)
            self._choose()
            return
        for first in range(0, length, self._together):
            part = prompt[:, first : first + self._together].contiguous()
            last = first + self._together >= length
            self._run(part, first, self.logits if last else None)
        self._choose()

    @torch.inference_mode()
    def step(self) -> None:
        self._run(self.token, self._length, self.logits)
        self._length += 1
        self._choose()

    def kv_bytes(self) -> int:
        """Of the positions held: attention reads no others."""
        return self._cache.kv_bytes() * self._length // self._cache.positions

    def spared_bytes(self) -> int:
        return self._spared

    def unseen_bytes(self) -> int:
        """Activations of a part of the prompt, and the head where it is kept in 16 bits beside."""
        return self._step.workspace_bytes(min(self._length, self._together)) + self._spared

    def parts_ms(self) -> dict[str, float] | None:
        times = self._step.times
        return {"kernels": times.products, "attention": times.attention, "rest": times.rest}

    def _table_of_rows(self) -> Tensor:
        """The embeddings; of packed ones a table whose first rows are written before every run.

        Only pages that are written take memory.
        """
        if not self._packed:
            weight: Tensor = self._table.weight
            return weight.detach()
        shape = self._table.num_embeddings, self._table.embedding_dim
        return own_zeros(shape, torch.float32)

    @property
    def _together(self) -> int:
        return min(TOGETHER, len(self._rows))

    def _run(self, tokens: Tensor, position: int, logits: Tensor | None) -> None:
        count = tokens.shape[1]
        # The cache is rounded up to whole vectors, and would have room for more.
        if self._most is not None and position + count > self._most:
            raise IndexError(f"position {position + count - 1} of a model with {self._most}")
        if self._packed:
            self._rows[:count].copy_(self._table(tokens[0]))
            tokens = torch.arange(count)[None]
        self._step.run(tokens, position, logits)

    def _choose(self) -> None:
        self.token = self.logits.argmax(-1, keepdim=True)
