"""Latency at batch 1: prefill and decode with the KV cache, beside the full-precision twin.

A generation server that answers one user waits once for the prompt (prefill, the time to the
first token) and then once a token (decode). Both are timed here the way `generate` spends them:
greedy, one sequence, keys and values cached. The quantized model and the full-precision model it
came from are measured in turn in the same process (A B, B A, A B, ...), so that whatever the
machine does to one it does to the other, and the ratio is taken repeat by repeat.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from harness.config import LatencyConfig
from harness.memory import (
    MemoryPeak,
    bytes_per_token,
    embedding_bytes,
    measure_peak,
    weight_bytes,
)
from harness.record import Metric
from harness.suites.base import SuiteContext, SuiteResult

T = TypeVar("T")

P99_SAMPLES = 100  # fewer observations than this have no 99th percentile worth printing


class Stopwatch(Protocol):
    """Runs a step and says how many milliseconds it took."""

    def __call__(self, step: Callable[[], T]) -> tuple[T, float]: ...


def host_stopwatch(clock: Callable[[], int] = time.perf_counter_ns) -> Stopwatch:
    """Wall time of a step on the CPU; `clock` gives nanoseconds."""

    def measure(step: Callable[[], T]) -> tuple[T, float]:
        start = clock()
        result = step()
        return result, (clock() - start) / 1e6

    return measure


def device_stopwatch(device: str) -> Stopwatch:
    """Time between two CUDA events around a step that starts on an idle device.

    The device is idle before and after, as in generation that looks at every token, so the
    interval holds the launches too.
    """

    def measure(step: Callable[[], T]) -> tuple[T, float]:
        with torch.cuda.device(device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            result = step()
            end.record()
            end.synchronize()
        return result, start.elapsed_time(end)

    return measure


@dataclass(frozen=True)
class Generation:
    """One prompt answered greedily: the tokens, and what prefill and every decode step took."""

    tokens: list[int]
    prefill_ms: float
    decode_ms: list[float]


@dataclass
class Timings:
    """What one model took over all repeats."""

    prefill_ms: list[float] = field(default_factory=list)
    decode_ms: list[list[float]] = field(default_factory=list)  # [repeat][token]

    def add(self, generation: Generation) -> None:
        self.prefill_ms.append(generation.prefill_ms)
        self.decode_ms.append(generation.decode_ms)

    @property
    def tokens_ms(self) -> list[float]:
        """Every decode step of every repeat."""
        return [value for repeat in self.decode_ms for value in repeat]

    @property
    def repeats_ms(self) -> list[float]:
        """The median decode step of every repeat."""
        return [summarise(repeat)[0] for repeat in self.decode_ms]


def run(
    context: SuiteContext, config: LatencyConfig, stopwatch: Stopwatch | None = None
) -> SuiteResult:
    """Measure the model and, when it is quantized, its twin; ValueError for an impossible setting.

    `stopwatch` is for tests; the clock of the device otherwise.
    """
    check_config(config, context.model)
    prompt = make_prompt(context, config.prompt_tokens)
    stopwatch = stopwatch or (
        device_stopwatch(context.device) if _on_cuda(context.device) else host_stopwatch()
    )
    models = {"model": context.model}
    with torch.inference_mode():
        # The memory of the model alone: before the twin is there and before anything is warm.
        peak = measure_peak(
            lambda: generate(context.model, prompt, config.decode_tokens, host_stopwatch()),
            context.device,
        )
        if context.quantized:
            models["twin"] = context.load_twin()
        for model in models.values():
            for _ in range(config.warmup):
                generate(model, prompt, 1, host_stopwatch())
        timings = _measure_in_turn(models, prompt, config, stopwatch, context.progress)
    return SuiteResult(
        metrics=_metrics(context, config, models, timings, peak),
        inputs={f"latency/prompt_{config.prompt_tokens}": _prompt_hash(prompt)},
        samples=_samples(timings),
    )


def check_config(config: LatencyConfig, model: Any) -> None:
    """ValueError, naming the setting to change, when there is nothing or too much to measure."""
    for name, least in (("prompt_tokens", 1), ("decode_tokens", 1), ("repeats", 1), ("warmup", 0)):
        if getattr(config, name) < least:
            raise ValueError(
                f"suite.latency.{name}={getattr(config, name)} measures nothing; "
                f"use at least {least}."
            )
    limit = _positions(model)
    needed = config.prompt_tokens + config.decode_tokens
    if limit is not None and needed > limit:
        raise ValueError(
            f"suite.latency asks for {config.prompt_tokens} prompt tokens and "
            f"{config.decode_tokens} decoded tokens, {needed} positions, but the model has "
            f"{limit}; lower suite.latency.prompt_tokens or suite.latency.decode_tokens."
        )


def make_prompt(context: SuiteContext, tokens: int) -> Tensor:
    """int64 [1, tokens] on the device: ordinary token ids drawn with the cell's seed."""
    special = set(getattr(context.tokenizer, "all_special_ids", None) or ())
    vocabulary = context.model.get_input_embeddings().weight.shape[0]
    if context.tokenizer is not None and len(context.tokenizer):
        vocabulary = min(vocabulary, len(context.tokenizer))
    ordinary = torch.tensor([token for token in range(vocabulary) if token not in special])
    if not len(ordinary):
        raise ValueError(
            f"the tokenizer has {vocabulary} tokens and all are special: there is no ordinary "
            "token to make a prompt of; check the tokenizer of the model folder."
        )
    generator = torch.Generator().manual_seed(context.seed)
    draw = torch.randint(len(ordinary), (1, tokens), generator=generator)
    return ordinary[draw].to(context.device)


def generate(model: Any, prompt: Tensor, tokens: int, stopwatch: Stopwatch) -> Generation:
    """Answer `prompt` [1, T] greedily with `tokens` decode steps over the KV cache, timing each.

    The first new token comes from prefill; every decode step feeds one token and makes the next,
    so tokens + 1 token ids come back. RuntimeError when the model returns no cache.
    """
    # generate() asks for the last position's logits alone, where the model can do that.
    last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
    extra = {"logits_to_keep": 1} if last_only else {}

    def prefill() -> tuple[Tensor, Any]:
        output = model(input_ids=prompt, use_cache=True, **extra)
        return output.logits[:, -1:].argmax(-1), output.past_key_values

    (token, cache), prefill_ms = stopwatch(prefill)
    if cache is None:
        raise RuntimeError(
            f"{type(model).__name__} returns no past_key_values with use_cache=True, so decoding "
            "with the KV cache cannot be measured; leave suite.latency out for this model."
        )
    answer, decode_ms = [token], []
    for _ in range(tokens):

        def step(token: Tensor = token, cache: Any = cache) -> tuple[Tensor, Any]:
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            return output.logits[:, -1:].argmax(-1), output.past_key_values

        (token, cache), milliseconds = stopwatch(step)
        answer.append(token)
        decode_ms.append(milliseconds)
    return Generation(torch.cat(answer, 1)[0].tolist(), prefill_ms, decode_ms)


def _measure_in_turn(
    models: dict[str, Any],
    prompt: Tensor,
    config: LatencyConfig,
    stopwatch: Stopwatch,
    progress: Callable[[int, int, str], None],
) -> dict[str, Timings]:
    timings = {name: Timings() for name in models}
    with _no_garbage_collection():
        for repeat in range(config.repeats):
            progress(repeat, config.repeats, "latency")
            # Who goes first alternates: neither always finds the caches the other left.
            for name in list(models)[:: 1 if repeat % 2 == 0 else -1]:
                timings[name].add(generate(models[name], prompt, config.decode_tokens, stopwatch))
    progress(config.repeats, config.repeats, "latency")
    return timings


def summarise(values: list[float]) -> tuple[float, dict[str, float]]:
    """The median, and the percentiles p10, p50, p90 (p99 from 100 values on), interpolated."""
    levels = {"p10": 0.10, "p50": 0.50, "p90": 0.90}
    if len(values) >= P99_SAMPLES:
        levels["p99"] = 0.99
    data = torch.tensor(values, dtype=torch.float64)
    quantiles = {name: torch.quantile(data, level).item() for name, level in levels.items()}
    return quantiles["p50"], quantiles


def paired_ratio(numerator: list[float], denominator: list[float]) -> list[float]:
    """Repeat by repeat, so that what slowed both in one repeat cancels."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def _metrics(
    context: SuiteContext,
    config: LatencyConfig,
    models: dict[str, Any],
    timings: dict[str, Timings],
    peak: MemoryPeak,
) -> list[Metric]:
    task = f"prompt{config.prompt_tokens}_decode{config.decode_tokens}"
    conditions = _conditions(context)
    metrics = []
    for name, model in models.items():
        prefix = "" if name == "model" else "twin_"
        kernel = context.kernel if context.quantized and name == "model" else "torch"
        metrics += _speed(prefix, task, timings[name], config, conditions | {"kernel": kernel})
        metrics += _weights(prefix, model, timings[name])
    if "twin" in models:
        metrics += _ratios(task, timings, conditions | {"kernel": context.kernel})
    metrics.append(_bytes("peak_memory_bytes", task, peak.bytes, peak.notes))
    if peak.working_bytes is not None:
        metrics.append(_bytes("working_memory_bytes", task, peak.working_bytes, peak.notes))
    return metrics


def _speed(
    prefix: str, task: str, timings: Timings, config: LatencyConfig, notes: dict[str, str]
) -> list[Metric]:
    metrics = []
    for phase, values, n_unit, tokens in (
        ("prefill", timings.prefill_ms, "repeats", config.prompt_tokens),
        ("decode", timings.tokens_ms, "tokens", 1),
    ):
        median, quantiles = summarise(values)
        time_, speed = f"{prefix}{phase}_ms", f"{prefix}{phase}_tokens_per_s"
        metrics += [
            Metric(
                name=time_,
                task=task,
                value=median,
                unit="ms",
                n=len(values),
                n_unit=n_unit,
                quantiles=quantiles,
                notes=notes,
            ),
            Metric(
                name=speed,
                task=task,
                value=1e3 * tokens / median,
                unit="tokens/s",
                n=len(values),
                n_unit=n_unit,
                higher_is_better=True,
                notes=notes,
            ),
        ]
    return metrics


def _weights(prefix: str, model: Any, timings: Timings) -> list[Metric]:
    """Bytes in memory, and how fast decoding goes through those that every token reads."""
    tied = {"counted": "parameters and buffers in memory, tied tensors once"}
    tables = {"counted": "token, position and output embeddings: not quantized, in weight_bytes"}
    reads = {"counted": "weights a token reads over its median time, without KV cache"}
    return [
        _bytes(f"{prefix}weight_bytes", "model", weight_bytes(model), tied),
        _bytes(f"{prefix}embedding_bytes", "model", embedding_bytes(model), tables),
        Metric(
            name=f"{prefix}decode_bandwidth",
            task="model",
            value=bytes_per_token(model) / summarise(timings.tokens_ms)[0] / 1e6,
            unit="GB/s",
            n=len(timings.tokens_ms),
            n_unit="tokens",
            higher_is_better=True,
            notes=reads,
        ),
    ]


def _ratios(task: str, timings: dict[str, Timings], notes: dict[str, str]) -> list[Metric]:
    """Time of the quantized model over its twin's: under 1 is faster than full precision."""
    model, twin = timings["model"], timings["twin"]
    pairs = {
        "prefill_time_ratio": paired_ratio(model.prefill_ms, twin.prefill_ms),
        "decode_time_ratio": paired_ratio(model.repeats_ms, twin.repeats_ms),
    }
    metrics = []
    for name, ratios in pairs.items():
        median, quantiles = summarise(ratios)
        metrics.append(
            Metric(
                name=name,
                task=task,
                value=median,
                unit="ratio",
                n=len(ratios),
                n_unit="repeats",
                quantiles=quantiles,
                notes=notes,
            )
        )
    return metrics


def _bytes(name: str, task: str, value: int, notes: dict[str, str]) -> Metric:
    return Metric(
        name=name, task=task, value=float(value), unit="bytes", n=1, n_unit="models", notes=notes
    )


def _conditions(context: SuiteContext) -> dict[str, str]:
    conditions = {"dtype": context.dtype, "device": context.device, "batch": "1"}
    if _on_cuda(context.device):
        return conditions | {"clock": "CUDA events", "gpu": torch.cuda.get_device_name()}
    return conditions | {"clock": "perf_counter_ns", "threads": str(torch.get_num_threads())}


def _samples(timings: dict[str, Timings]) -> list[dict[str, Any]]:
    return [
        {"model": name, "repeat": repeat, "prefill_ms": prefill, "decode_ms": decode}
        for name, times in timings.items()
        for repeat, (prefill, decode) in enumerate(
            zip(times.prefill_ms, times.decode_ms, strict=True)
        )
    ]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a 10 ms step would be measured as the model's."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _positions(model: Any) -> int | None:
    """Positions the model can attend to; None when nothing bounds them (ALiBi)."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return None


def _on_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _prompt_hash(prompt: Tensor) -> str:
    return hashlib.sha256(prompt.cpu().numpy().astype("<i8").tobytes()).hexdigest()
