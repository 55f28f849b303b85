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
from quant.decode.llama import Unsupported, all_packed, open_step, require_llama

# Tokens that the step takes at a time. Its activations stay in the second-level cache.
TOGETHER = 64
# Tokens of a prompt up to which the step takes layers that are not packed. Its product with plain
# weights is made for one token: at 16 tokens it is ahead of the model's own forward, at 128 behind
# (docs/decoding.md), and a baseline is not to be timed on the slower way.
PLAIN_TOGETHER = 32


class FusedDecoder:
    """One sequence of a Llama-like model; quant.decode.caches.Decoder says what it offers."""

    def __init__(self, model: Any, positions: int) -> None:
        """Unsupported for a model that a step cannot take, or without compiled kernels."""
        self.mode, self.reason = FUSED, ""
        if model.get_input_embeddings().weight.device.type != "cpu":
            raise Unsupported("the step runs on a processor")
        shape = require_llama(model)
        # Its checks are those of a static cache, which the step writes and reads too.
        self._cache = StaticDecoder(model, positions)
        with torch.inference_mode():
            buffers = self._cache.allocate(shape.kv_heads, shape.width)
            try:
                self._step, self._spared = open_step(model, shape, buffers, TOGETHER)
            except BuildError as error:
                raise Unsupported(f"no compiled kernels: {error}") from error
            self.logits = torch.zeros((1, len(model.get_input_embeddings().weight)))
            self.token = torch.zeros((1, 1), dtype=torch.int64)
        self._length = 0
        self._longest = positions if all_packed(model) else PLAIN_TOGETHER

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> None:
        length = self._length = prompt.shape[1]
        if length > self._longest:
            self._cache.prefill(prompt)  # writes keys and values where the step reads them
            self.logits.copy_(self._cache.logits)
            self._choose()
            return
        for first in range(0, length, TOGETHER):
            part = prompt[:, first : first + TOGETHER].contiguous()
            last = first + TOGETHER >= length
            self._step.run(part, first, self.logits if last else None)
        self._choose()

    @torch.inference_mode()
    def step(self) -> None:
        self._step.run(self.token, self._length, self.logits)
        self._length += 1
        self._choose()

    def kv_bytes(self) -> int:
        """Of the positions held: attention reads no others."""
        return self._cache.kv_bytes() * self._length // self._cache.positions

    def spared_bytes(self) -> int:
        return self._spared

    def parts_ms(self) -> dict[str, float] | None:
        times = self._step.times
        return {"kernels": times.products, "attention": times.attention, "rest": times.rest}

    def _choose(self) -> None:
        self.token = self.logits.argmax(-1, keepdim=True)
