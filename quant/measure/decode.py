"""Greedy decoding at batch size 1 with a KV cache, in a CUDA graph if possible.

A decode step of a large model is hundreds of small kernels between a few large ones. Launched one
by one from Python, the small kernels take longer than reading the weights. With a static cache
every tensor of a step keeps its address and shape, so the step can be captured once as a CUDA graph
and replayed. `make_decoder` selects the fastest of three modes that is correct for a model, and
reports the mode and the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, StaticCache
from transformers.cache_utils import StaticLayer

GRAPH = "static cache, CUDA graph"
STATIC = "static cache, eager"
DYNAMIC = "dynamic cache"

WARM_STEPS = 3  # before a capture: loads kernels and allocates workspaces
ALIGNED = 16  # positions; attention on CUDA copies masks of other lengths before every use
# Largest difference of logits between the two caches, in standard deviations of the logits. A wrong
# mask or position changes logits by about 1; rounding changes them by far less than these values.
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-6}
AGREEMENT_16_BITS = 0.1

Step = Callable[[], None]
# record(warm, step) returns a function that repeats `step`; warm() runs it and undoes its effect.
Recorder = Callable[[Step, Step], Step]


class Unsupported(Exception):
    """A model cannot be decoded in some mode; the message is a clause that says why."""


class Decoder(Protocol):
    """Decodes one sequence: `prefill` reads the prompt, and every `step` adds a token.

    token   int64 [1, 1], the newest token; overwritten by the next step.
    logits  [1, vocabulary], from which token was selected.
    mode    GRAPH, STATIC or DYNAMIC; reason says why it is not GRAPH ("" if it is).
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
        return _cache_bytes(self._cache)

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
        positions = -(-positions // ALIGNED) * ALIGNED
        with torch.inference_mode():
            device = model.get_input_embeddings().weight.device
            self._length = torch.zeros((), dtype=torch.int64, device=device)
            self.token = torch.zeros((1, 1), dtype=torch.int64, device=device)
            self._places = torch.arange(positions, device=device)
            self._all = torch.ones((1, positions), dtype=torch.int64, device=device)
        self._cache = Cache(
            layers=[SharedLengthLayer(positions, self._length) for _ in range(layers)]
        )
        self._alibi = _has_alibi(model)
        self._replay: Step = self._step

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
        return _cache_bytes(self._cache)

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


def make_decoder(
    model: Any, prompt: Tensor, tokens: int, record: Recorder | None = None
) -> Decoder:
    """Return the fastest decoder with the model's own logits for prompt [1, T] and `tokens` steps.

    A static cache is compared with the dynamic one on the prompt and one step. On CUDA the step is
    then captured (record is for tests). The decoder's `reason` says what was not possible.
    torch.OutOfMemoryError is raised; any other exception of a mode makes the mode unsupported.
    """
    if record is None and prompt.device.type == "cuda":
        record = cuda_graph(prompt.device)
    try:
        static = StaticDecoder(model, prompt.shape[1] + tokens)
        _require_agreement(static, DynamicDecoder(model), prompt)
    except torch.OutOfMemoryError:
        raise
    except (Unsupported, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        return DynamicDecoder(model, f"no static cache: {_short(error)}")
    if record is None:
        static.reason = f"no CUDA graph on {prompt.device.type}"
        return static
    try:
        static.prefill(prompt)
        static.capture(record)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        static = StaticDecoder(model, prompt.shape[1] + tokens)
        static.reason = f"no CUDA graph: {_short(error)}"
    return static


def cuda_graph(device: torch.device) -> Recorder:
    """Return a recorder that captures as torch's documentation requires, after a warm-up."""

    def record(warm: Step, step: Step) -> Step:
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_STEPS):
                    warm()
            torch.cuda.current_stream(device).wait_stream(side)
            graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
            try:
                with torch.cuda.graph(graph):
                    step()
            except RuntimeError as error:
                # Ending a broken capture raises another error, which hides the cause, and leaves
                # the stream of the capture current.
                torch.cuda.set_stream(before)
                cause = error.__context__
                raise cause if isinstance(cause, RuntimeError) else error from None
        return graph.replay

    return record


def last_only(model: Any) -> dict[str, int]:
    """Return generate()'s argument for logits of the last position only, if the model has it."""
    takes = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if takes else {}


def _require_agreement(static: StaticDecoder, dynamic: DynamicDecoder, prompt: Tensor) -> None:
    """Raise Unsupported if the caches give different logits for the prompt or the next token."""
    dynamic.prefill(prompt)
    static.prefill(prompt)
    _require_close(static.logits, dynamic.logits, "prompt")
    dynamic.token = static.token.clone()
    dynamic.step()
    static.step()
    _require_close(static.logits, dynamic.logits, "first token")


def _require_close(found: Tensor, expected: Tensor, where: str) -> None:
    spread = expected.double().std()
    worst = float(((found.double() - expected.double()).abs().max() / spread).nan_to_num(torch.inf))
    allowed = AGREEMENT.get(expected.dtype, AGREEMENT_16_BITS)
    if worst > allowed:
        raise Unsupported(
            f"its logits at the {where} are {worst:.2g} standard deviations from those with the "
            f"dynamic cache (rounding explains at most {allowed:g})"
        )


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


def _cache_bytes(cache: Any) -> int:
    tensors = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in tensors)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0][:200] if lines else type(error).__name__
    return text if isinstance(error, Unsupported) else f"{type(error).__name__}: {text}"
