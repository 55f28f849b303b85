"""What the throughput suite measures: batches of equal sequences, and concurrent requests.

The harness's own loop around the model's forward, no serving engine: no paged cache, no CUDA graph,
no chunked prefill. Requests are batched at every step (continuous batching): one that is done
leaves, the next one's prompt is read alone while the others wait, and joins. Rows of unequal length
are padded on the left, and masked.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from harness.records.busyness import Watch, said_busy, with_note
from harness.records.record import Metric
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.latency_metrics import ways_of
from harness.suites.timing import (
    conditions,
    no_garbage_collection,
    place_notes,
    synchronized,
)
from harness.suites.timing_tokens import make_prompt, positions_of
from quant.decode.caches import last_only

Clock = Callable[[], float]  # seconds


class Loads(Protocol):
    """Lengths, and how many sequences at once (harness.suites.throughput.Config)."""

    prompt_tokens: int
    decode_tokens: int
    batches: list[int]
    requests: list[int]
    repeats: int
    rounds: int


@dataclass
class Times:
    """Milliseconds of first tokens and of later ones; tokens made in so many seconds."""

    first_ms: list[float] = field(default_factory=list)
    token_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    answers: list[list[int]] = field(default_factory=list)


Measure = Callable[[SuiteContext, Loads, int, Clock], Times]


def run(context: SuiteContext, config: Loads, clock: Clock | None = None) -> SuiteResult:
    """Measure every load; ValueError for lengths that the model does not take.

    `clock` is for tests; tokens are read on the host before it is, so that their device is done.
    """
    clock = clock or _clock(context.devices)
    limit = positions_of(context.model)
    if limit is not None and config.prompt_tokens + config.decode_tokens > limit:
        raise ValueError(
            f"suite.throughput asks for {config.prompt_tokens} + {config.decode_tokens} tokens, "
            f"but the model has {limit} positions; lower prompt_tokens or decode_tokens."
        )
    metrics: list[Metric] = []
    missing: dict[str, str] = {}
    watch = Watch()
    loads: list[tuple[str, Measure, int]] = [
        (f"batch{size}", batch_times, size) for size in config.batches
    ]
    loads += [(f"requests{count}", request_times, count) for count in config.requests]
    with torch.inference_mode(), no_garbage_collection():
        for done, (task, measure, count) in enumerate(loads):
            context.progress(done, len(loads), f"throughput {task}")
            watch.look()
            try:
                times = measure(context, config, count, clock)
            except (torch.OutOfMemoryError, Unpaddable) as error:
                missing[task] = str(error).splitlines()[0]
                continue
            metrics += _metrics(context, task, times)
    context.progress(len(loads), len(loads), "throughput")
    if not metrics:
        raise ValueError(f"no load could be measured: {'; '.join(missing.values())}.")
    absent = {"not measured": ", ".join(f"{task} ({why})" for task, why in missing.items())}
    if missing:
        metrics = [each.model_copy(update={"notes": each.notes | absent}) for each in metrics]
    return SuiteResult(with_note(metrics, said_busy(watch.usage())))


def _clock(devices: Sequence[str]) -> Clock:
    """Seconds of the host; of several devices all are waited for."""
    if not devices:
        return time.perf_counter
    read = synchronized(devices)
    return lambda: read() / 1e9


def batch_times(context: SuiteContext, config: Loads, size: int, clock: Clock) -> Times:
    """`size` prompts of one length answered at once, `repeats` times after one not timed."""
    prompts = _prompts(context, config.prompt_tokens, size)
    times = Times()
    for repeat in range(config.repeats + 1):
        start = clock()
        output = context.model(input_ids=prompts, use_cache=True, **last_only(context.model))
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        answer, now = [token.flatten().tolist()], clock()
        first, steps = now - start, []
        for _ in range(config.decode_tokens):
            output = context.model(
                input_ids=token, past_key_values=output.past_key_values, use_cache=True
            )
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            answer.append(token.flatten().tolist())
            last, now = now, clock()
            steps.append(1e3 * (now - last))
        if repeat:
            times.first_ms.append(1e3 * first)
            times.token_ms += steps
            times.tokens += size * (config.decode_tokens + 1)
            times.seconds += now - start
        times.answers = [list(each) for each in zip(*answer, strict=True)]
    return times


def request_times(context: SuiteContext, config: Loads, count: int, clock: Clock) -> Times:
    """`count` requests in flight, each place serving `rounds` of them one after the other.

    Prompts and answers have half of the configured lengths to all of them, drawn by the cell's
    seed. A request is there from the start or, when it waits for a place, from when that is free.
    """
    generator = torch.Generator().manual_seed(context.seed)
    total = count * config.rounds
    prompts, lengths = [], []
    for prompt in _prompts(context, config.prompt_tokens, total):
        lengths.append(_drawn(config.decode_tokens + 1, generator))
        prompts.append(prompt[None, : _drawn(config.prompt_tokens, generator)])
    return serve(Flight(context.model), prompts, lengths, count, clock)


def serve(
    flight: Flight, prompts: Sequence[Tensor], lengths: Sequence[int], count: int, clock: Clock
) -> Times:
    """Answer prompts [1, T] with so many tokens each, at most `count` of them at once."""
    times = Times(answers=[[] for _ in prompts])
    waiting, active = deque(range(len(prompts))), list[int]()
    start = free = now = clock()
    last = dict[int, float]()
    while waiting or active:
        while waiting and len(active) < count:
            number = waiting.popleft()
            token = flight.join(prompts[number])
            now = clock()
            times.first_ms.append(1e3 * (now - free))
            times.answers[number].append(token)
            last[number] = now
            active.append(number)
        flight.keep([len(times.answers[each]) < lengths[each] for each in active])
        active = [each for each in active if len(times.answers[each]) < lengths[each]]
        if active:
            for number, token in zip(active, flight.step(), strict=True):
                times.answers[number].append(token)
            now = clock()
            times.token_ms += [1e3 * (now - last[each]) for each in active]
            last |= dict.fromkeys(active, now)
        flight.keep([len(times.answers[each]) < lengths[each] for each in active])
        active = [each for each in active if len(times.answers[each]) < lengths[each]]
        free = now
    times.tokens = sum(map(len, times.answers))
    times.seconds = now - start
    return times


class Unpaddable(Exception):
    """A cache whose rows cannot be padded."""


class Flight:
    """The requests that are decoded together, padded on the left in one cache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.int64)
        self._tokens = torch.zeros(0, 1, dtype=torch.int64)

    def join(self, prompt: Tensor) -> int:
        """Read a prompt [1, T], let it join, and return its first token."""
        output = self._model(input_ids=prompt, use_cache=True, **last_only(self._model))
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        mask = torch.ones_like(prompt)
        layers = output.past_key_values.layers
        strange = next((each for each in layers if type(each) is not DynamicLayer), None)
        if strange is not None:
            raise Unpaddable(f"its cache has layers of {type(strange).__name__}, not of all keys")
        if len(self._mask) == 0:
            self._cache, self._mask, self._tokens = output.past_key_values, mask, token
            return int(token)
        width = max(self._mask.shape[1], mask.shape[1])
        for mine, new in zip(self._cache.layers, layers, strict=True):
            mine.keys = torch.cat([_wide(mine.keys, width, 2), _wide(new.keys, width, 2)])
            mine.values = torch.cat([_wide(mine.values, width, 2), _wide(new.values, width, 2)])
        self._mask = torch.cat([_wide(self._mask, width, 1), _wide(mask, width, 1)])
        self._tokens = torch.cat([self._tokens, token])
        return int(token)

    def keep(self, chosen: Sequence[bool]) -> None:
        """Let the others leave, and the columns that none of the rest needs."""
        if all(chosen):
            return
        rows = torch.tensor([at for at, stays in enumerate(chosen) if stays])
        rows = rows.to(self._mask.device, torch.int64)
        mask = self._mask[rows]
        used = mask.any(0).nonzero()
        first = int(used[0]) if len(used) else mask.shape[1]
        self._mask, self._tokens = mask[:, first:], self._tokens[rows]
        for layer in self._cache.layers:
            here = rows.to(layer.keys.device)  # of a model over several devices, that of its block
            layer.keys, layer.values = layer.keys[here, :, first:], layer.values[here, :, first:]

    def step(self) -> list[int]:
        """Decode one more token of every request."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        places = {}
        if self._takes_positions:
            places["position_ids"] = self._mask.sum(1, keepdim=True) - 1
        output = self._model(
            input_ids=self._tokens,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **places,
        )
        self._tokens = output.logits[:, -1].argmax(-1, keepdim=True)
        found: list[int] = self._tokens.flatten().tolist()
        return found


def _wide(tensor: Tensor, width: int, dim: int) -> Tensor:
    """Zeros before dimension `dim` of a tensor, up to `width`."""
    missing = width - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim)


def _prompts(context: SuiteContext, tokens: int, count: int) -> Tensor:
    """int64 [count, tokens]: one long prompt of ordinary tokens, in rows."""
    return make_prompt(context, tokens * count).view(count, tokens)


def _drawn(most: int, generator: torch.Generator) -> int:
    """From half of `most`, at least 1, up to all of it."""
    least = max(1, most // 2)
    return least + int(torch.randint(most - least + 1, (1,), generator=generator))


def _metrics(context: SuiteContext, task: str, times: Times) -> list[Metric]:
    kernel = ways_of(context.model) or context.kernel if context.quantized else "torch"
    notes = conditions(context.device, context.dtype, context.devices)
    notes |= {"kernel": kernel, "loop": "harness", **place_notes(context.model)}
    found = [
        Metric(
            name="tokens_per_s",
            task=task,
            value=times.tokens / times.seconds,
            unit="tokens/s",
            n=times.tokens,
            n_unit="tokens",
            higher_is_better=True,
            notes=notes,
        )
    ]
    for name, values in (("first_token", times.first_ms), ("token", times.token_ms)):
        data = torch.tensor(values, dtype=torch.float64)
        for suffix, level in (("ms", 0.5), ("p95_ms", 0.95)):
            found.append(
                Metric(
                    name=f"{name}_{suffix}",
                    task=task,
                    value=torch.quantile(data, level).item(),
                    unit="ms",
                    n=len(values),
                    n_unit="tokens",
                    notes=notes,
                )
            )
    return found
