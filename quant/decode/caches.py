"""Greedy decoding at batch 1 through the model's own forward: a cache that grows, or a static one.

With a static cache every tensor of a step keeps its address and shape, so the step can be captured
once as a CUDA graph and replayed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, StaticCache
from transformers.cache_utils import StaticLayer

from quant.decode.description import Unsupported
from quant.embedding import rows_and_device

FUSED = "fused step"
GRAPH = "static cache, CUDA graph"
STATIC = "static cache, eager"
DYNAMIC = "dynamic cache"
GROWING = (FUSED, DYNAMIC)  # attention reads the positions that are held and no others

ALIGNED = 16  # positions; attention on CUDA copies masks of another length before every use

Step = Callable[[], None]
# record(warm, step) returns a function that repeats `step`; warm() runs it and undoes its effect.
Recorder = Callable[[Step, Step], Step]


class Decoder(Protocol):
    """Decodes one sequence: `prefill` reads the prompt, and every `step` adds a token.

    token   int64 [1, 1], the newest token; overwritten by the next step.
    logits  [1, vocabulary], from which token was selected.
    mode    FUSED, GRAPH, STATIC or DYNAMIC; reason says why it is neither FUSED nor GRAPH ("" if it
            is one of them).
    """

    token: Tensor
    logits: Tensor
    mode: str
    reason: str

    def prefill(self, prompt: Tensor) -> None:
        """Start a new sequence with prompt int64 [1, tokens]."""
        ...

    def step(self) -> None:
        """Decode one more token."""
        ...

    def kv_bytes(self) -> int:
        """Return the bytes of keys and values that the next step would read."""
        ...

    def spared_bytes(self) -> int:
        """Return the bytes of weights that a step does not read because it reads a shorter form."""
        ...

    def unseen_bytes(self) -> int:
        """Return the bytes beside weights and cache that no operator has returned since the prompt:
        those that one takes inside of itself, and what the decoder keeps.
        """
        ...

    def parts_ms(self) -> dict[str, float] | None:
        """Return the milliseconds of the last step by part; None if the decoder does not know."""
        ...


class DynamicDecoder:
    """Decoder with a cache that grows by concatenation, the default of `generate`."""

    def __init__(self, model: Any, reason: str = "") -> None:
        self.mode, self.reason = DYNAMIC, reason
        self._model, self._cache = model, None

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> None:
        """Start a new sequence; RuntimeError if the model returns no cache."""
        output = self._model(input_ids=prompt, use_cache=True, **last_only(self._model))
        self._take(output)
        if self._cache is None:
            raise RuntimeError(
                f"{type(self._model).__name__} returns no past_key_values with use_cache=True, so "
                "decoding with the KV cache cannot be measured; leave suite.latency out for this "
                "model."
            )

    @torch.inference_mode()
    def step(self) -> None:
        self._take(self._model(input_ids=self.token, past_key_values=self._cache, use_cache=True))

    def kv_bytes(self) -> int:
        return cache_bytes(self._cache)

    def spared_bytes(self) -> int:
        return 0

    def unseen_bytes(self) -> int:
        return 0

    def parts_ms(self) -> dict[str, float] | None:
        return None

    def _take(self, output: Any) -> None:
        self.logits, self._cache = output.logits[:, -1], output.past_key_values
        self.token = self.logits.argmax(-1, keepdim=True)


class SharedLengthLayer(StaticLayer):
    """transformers' static cache layer with one length for all layers, updated by the decoder.

    The parent class counts in every layer, which takes three small kernels per layer and token.
    """

    def __init__(self, max_cache_len: int, length: Tensor) -> None:
        super().__init__(max_cache_len)
        self.cumulative_length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [1, heads, tokens, dim] after the cached ones; return all of them.

        More than one token is a prompt, which starts at position 0.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        tokens = key_states.shape[-2]
        if tokens == 1:
            places = self.cumulative_length.view(1)
        else:
            places = torch.arange(tokens, device=key_states.device)
        self.keys.index_copy_(2, places, key_states)
        self.values.index_copy_(2, places, value_states)
        return self.keys, self.values


class StaticDecoder:
    """Decoder with a cache of fixed size (`positions` tokens); steps use fixed addresses."""

    def __init__(self, model: Any, positions: int) -> None:
        """Raise Unsupported if the model's cache is not keys and values of all positions."""
        self.mode, self.reason = STATIC, ""
        self._model = model
        layers = _layer_count(model, positions)
        self.positions = positions = -(-positions // ALIGNED) * ALIGNED
        with torch.inference_mode():
            _, device = rows_and_device(model)
            self._length = torch.zeros((), dtype=torch.int64, device=device)
            self.token = torch.zeros((1, 1), dtype=torch.int64, device=device)
            self._places = torch.arange(positions, device=device)
            self._all = torch.ones((1, positions), dtype=torch.int64, device=device)
        self._cache = Cache(
            layers=[SharedLengthLayer(positions, self._length) for _ in range(layers)]
        )
        self._alibi = _has_alibi(model)
        self._replay: Step = self._step

    def allocate(self, heads: int, width: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer, [1, heads, positions, width]; a forward fills them."""
        shape = self._all.new_empty((1, heads, 1, width), dtype=self._model.dtype)
        buffers = []
        for layer in self._cache.layers:
            assert isinstance(layer, StaticLayer)
            layer.lazy_initialization(shape, shape)
            assert layer.keys is not None
            assert layer.values is not None
            buffers.append((layer.keys, layer.values))
        return buffers

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> None:
        self._length.zero_()
        mask = {"attention_mask": self._all} if self._alibi else {}
        output = self._model(
            input_ids=prompt,
            past_key_values=self._cache,
            use_cache=True,
            **mask,
            **last_only(self._model),
        )
        self.logits = output.logits[:, -1]
        self.token.copy_(self.logits.argmax(-1, keepdim=True))
        self._length.fill_(prompt.shape[1])

    @torch.inference_mode()
    def step(self) -> None:
        self._replay()

    def kv_bytes(self) -> int:
        """Return the bytes of the whole buffers, which attention reads (unused parts masked)."""
        return cache_bytes(self._cache)

    def spared_bytes(self) -> int:
        return 0

    def unseen_bytes(self) -> int:
        return 0

    def parts_ms(self) -> dict[str, float] | None:
        return None

    @torch.inference_mode()
    def capture(self, record: Recorder) -> None:
        """Make each step one replay. Call after a prefill, and prefill again afterwards."""
        start = self._length.clone()

        def warm() -> None:
            # Always the same position, so that warming up stays within the buffers.
            self._step()
            self._length.copy_(start)

        replay = record(warm, self._step)
        # A replay runs no Python: it writes to the logits of the captured step, and a prefill
        # replaces self.logits.
        captured = self.logits

        def step() -> None:
            replay()
            self.logits = captured

        self._replay = step
        self._length.copy_(start)
        self.mode = GRAPH

    def _step(self) -> None:
        """The body of the graph: nothing here reads a value on the host or copies one there."""
        output = self._model(
            input_ids=self.token,
            past_key_values=self._cache,
            use_cache=True,
            **self._where_tokens_are(),
        )
        self.logits = output.logits[:, -1]
        self.token.copy_(self.logits.argmax(-1, keepdim=True))
        self._length.add_(1)

    def _where_tokens_are(self) -> dict[str, Tensor]:
        """Return position and mask of the step, computed from the length on the device."""
        if self._alibi:  # alibi needs the mask of all positions; the cache makes it causal
            return {"attention_mask": self._all}
        dtype = self._model.dtype
        seen = self._places <= self._length
        mask = torch.zeros_like(self._places, dtype=dtype)
        mask.masked_fill_(~seen, torch.finfo(dtype).min)
        return {
            "position_ids": self._length.view(1, 1),
            "attention_mask": mask.view(1, 1, 1, -1),
        }


def last_only(model: Any) -> dict[str, int]:
    """Return generate()'s argument for logits of the last position only, if the model has it."""
    takes = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if takes else {}


def _layer_count(model: Any, positions: int) -> int:
    """Return the number of cache layers; Unsupported unless all are keys and values."""
    config = model.config.get_text_config(decoder=True)
    for layer in StaticCache(config=config, max_cache_len=positions).layers:
        if not isinstance(layer, StaticLayer):
            raise Unsupported(f"its cache has layers of {type(layer).__name__}")
        if layer.max_cache_len < positions:
            raise Unsupported(
                f"its sliding window of {layer.max_cache_len} is shorter than the {positions} "
                "positions"
            )
    return int(config.num_hidden_layers)


def _has_alibi(model: Any) -> bool:
    """Whether the model has position biases instead of position ids: BLOOM, some Falcon models."""
    takes = "position_ids" in inspect.signature(model.forward).parameters
    return not takes or bool(getattr(model.config, "alibi", False))


def cache_bytes(cache: Any) -> int:
    tensors = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in tensors)
