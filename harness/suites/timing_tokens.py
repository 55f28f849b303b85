"""What latency measures: prefill and decode at batch 1, beside the full-precision baseline.

A generation server that answers one user waits once for the prompt (prefill, the time to the first
token) and then once a token (decode). Both are timed here the way `generate` spends them: greedy,
one sequence, keys and values cached; on a GPU a step is one CUDA graph, on a processor one operator
(quant.decode.choose says when it cannot be). The quantized model and the full-precision model it
came from are measured in turn in the same process (A B, B A, A B, ...), so that whatever the
machine does to one it does to the other, and the ratio is taken repeat by repeat.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Sequence
from statistics import harmonic_mean
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.records.busyness import Watch, said_busy, with_note
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.energy import Meter, open_meter
from harness.suites.latency_metrics import (
    Generation,
    Lengths,
    Subject,
    Timings,
    all_metrics,
    size_metrics,
)
from harness.suites.memory import measure_peak
from harness.suites.timing import Stopwatch, host_stopwatch, no_garbage_collection, stopwatch_of
from quant.decode.caches import DYNAMIC, Decoder
from quant.decode.choose import make_decoder
from quant.embedding import rows_and_device
from quant.errors import NotEnoughMemory
from quant.measure.cache import cache_shape
from quant.measure.roofline import read_bandwidth
from quant.measure.workspace import workspace_bytes

Bandwidth = Callable[[str], float]


class Repeats(Lengths, Protocol):
    """How long prompt and answer are, and how often they are timed."""

    warmup: int
    repeats: int


def run(
    context: SuiteContext,
    config: Repeats,
    stopwatch: Stopwatch | None = None,
    bandwidth: Bandwidth | None = None,
    meter: Meter | str | None = None,
) -> SuiteResult:
    """Measure the model and, when quantized, its baseline; ValueError for an impossible setting.

    `stopwatch`, `bandwidth` and `meter` are for tests; the device's own otherwise.
    """
    check_config(config, context.model)
    prompt = make_prompt(context, config.prompt_tokens)
    more = context.devices[1:]
    stopwatch = stopwatch or stopwatch_of(context.device, more)
    meter = open_meter(context.device, more) if meter is None else meter
    decoders: dict[str, Decoder] = {}

    def first() -> None:
        decoders["model"] = make_decoder(context.model, prompt, config.decode_tokens)
        generate(decoders["model"], prompt, config.decode_tokens, host_stopwatch())

    with torch.inference_mode():
        # The memory of the model alone: before the baseline is there and before anything is warm.
        peak = measure_peak(first, context.devices or (context.device,))
        workspace = _workspace(decoders["model"], prompt, context.device, more)
        cache = cache_shape(context.model, prompt[:, :1])
        models = {"model": context.model}
        baseline, why_no_baseline = _baseline(context)
        if baseline is not None:
            models["baseline"] = baseline
            decoders["baseline"] = make_decoder(baseline, prompt, config.decode_tokens)
        for decoder in decoders.values():
            for _ in range(config.warmup):
                generate(decoder, prompt, 1, host_stopwatch())
        watch = Watch()
        timings = _measure_in_turn(
            decoders, prompt, config, stopwatch, context.progress, watch, meter
        )
        busy = said_busy(watch.usage())
        subjects = {
            name: Subject(model, decoders[name], timings[name]) for name, model in models.items()
        }
        read = bandwidth or read_bandwidth
        # A token goes through the devices one after the other, and each has about as many bytes.
        speed = harmonic_mean(read(device) for device in context.devices or (context.device,))
    metrics = all_metrics(context, config, subjects, peak, speed, why_no_baseline, meter)
    metrics += size_metrics(context.model, config, workspace, cache, positions_of(context.model))
    return SuiteResult(
        metrics=with_note(metrics, busy),
        inputs={f"latency/prompt_{config.prompt_tokens}": _prompt_hash(prompt)},
        samples=_samples(timings),
    )


def check_config(config: Repeats, model: Any) -> None:
    """ValueError, naming the setting to change, when there is nothing or too much to measure."""
    for name, least in (("prompt_tokens", 1), ("decode_tokens", 1), ("repeats", 1), ("warmup", 0)):
        if getattr(config, name) < least:
            raise ValueError(
                f"suite.latency.{name}={getattr(config, name)} measures nothing; "
                f"use at least {least}."
            )
    limit = positions_of(model)
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
    vocabulary, _ = rows_and_device(context.model)
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


def generate(
    decoder: Decoder,
    prompt: Tensor,
    tokens: int,
    stopwatch: Stopwatch,
    meter: Meter | None = None,
) -> Generation:
    """Answer `prompt` [1, T] greedily with `tokens` decode steps over the KV cache, timing each.

    With a meter, the energy of all decode steps together is measured too.

    The first new token comes from prefill; every decode step feeds one token and makes the next,
    so tokens + 1 token ids come back. RuntimeError when the model returns no cache.
    """
    _, prefill_ms = stopwatch(lambda: decoder.prefill(prompt))
    # A static decoder overwrites its token; the copy is made between two timed steps.
    answer, decode_ms, parts_ms = [decoder.token.clone()], [], []
    start = None if meter is None else meter.read()
    for _ in range(tokens):
        _, milliseconds = stopwatch(decoder.step)
        answer.append(decoder.token.clone())
        decode_ms.append(milliseconds)
        if parts := decoder.parts_ms():
            # What the decoder does not know of, Python and its own clock, is the rest too.
            rest = milliseconds - sum(parts.values()) + parts["rest"]
            parts_ms.append({**parts, "rest": rest})
    joules = None if meter is None else meter.joules(start, meter.read())
    return Generation(torch.cat(answer, 1)[0].tolist(), prefill_ms, decode_ms, parts_ms, joules)


def _workspace(decoder: Decoder, prompt: Tensor, device: str, more: Sequence[str]) -> int:
    """Bytes that reading the prompt and decoding a token take beside weights and cache."""

    def step() -> None:
        decoder.prefill(prompt)
        decoder.step()

    taken = workspace_bytes(step, device, more) + decoder.unseen_bytes()
    return taken - decoder.kv_bytes() if decoder.mode == DYNAMIC else taken


def _baseline(context: SuiteContext) -> tuple[Any, str]:
    """The full-precision model, or None and why there is none."""
    if not context.quantized:
        return None, ""
    try:
        return context.load_baseline(), ""
    except NotEnoughMemory as error:
        return None, f"not measured here: {error}"
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, f"not measured here: it does not fit beside the quantized model ({reason})"


def _measure_in_turn(
    decoders: dict[str, Decoder],
    prompt: Tensor,
    config: Repeats,
    stopwatch: Stopwatch,
    progress: Callable[[int, int, str], None],
    watch: Watch,
    meter: Meter | str,
) -> dict[str, Timings]:
    timings = {name: Timings() for name in decoders}
    read = None if isinstance(meter, str) else meter
    with no_garbage_collection():
        for repeat in range(config.repeats):
            progress(repeat, config.repeats, "latency")
            watch.look()
            # Who goes first alternates: neither always finds the caches the other left.
            for name in list(decoders)[:: 1 if repeat % 2 == 0 else -1]:
                found = generate(decoders[name], prompt, config.decode_tokens, stopwatch, read)
                timings[name].add(found)
    progress(config.repeats, config.repeats, "latency")
    return timings


def _samples(timings: dict[str, Timings]) -> list[dict[str, Any]]:
    return [
        {"model": name, "repeat": repeat, "prefill_ms": prefill, "decode_ms": decode}
        for name, times in timings.items()
        for repeat, (prefill, decode) in enumerate(
            zip(times.prefill_ms, times.decode_ms, strict=True)
        )
    ]


def positions_of(model: Any) -> int | None:
    """Positions the model can attend to; None when nothing bounds them (ALiBi)."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return None


def _prompt_hash(prompt: Tensor) -> str:
    return hashlib.sha256(prompt.cpu().numpy().astype("<i8").tobytes()).hexdigest()
