"""What the latency suite measured, as metrics: times, bytes a token, roofline, speed-up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from harness.records.record import Metric
from harness.suites.base import SuiteContext
from harness.suites.energy import ENERGY, Meter, why_too_short
from harness.suites.memory import MemoryPeak
from harness.suites.serving import ALL, UNBOUNDED, WINDOW
from harness.suites.timing import conditions, paired_ratio, place_notes, summarise
from quant.decode.caches import GROWING, Decoder
from quant.embedding import QuantEmbedding
from quant.factored import PackedLinear
from quant.measure.cache import CacheShape
from quant.measure.roofline import (
    activation_bytes_per_token,
    embedding_bytes,
    weight_bytes,
    weight_bytes_per_token,
    weight_count,
)

WORKSPACE = "tensors in memory at once while the prompt is read and a token decoded"


class Lengths(Protocol):
    """Tokens of the prompt and of the answer."""

    prompt_tokens: int
    decode_tokens: int


@dataclass(frozen=True)
class Generation:
    """One prompt answered greedily: the tokens, and what prefill and every decode step took."""

    tokens: list[int]
    prefill_ms: float
    decode_ms: list[float]
    parts_ms: list[dict[str, float]] = field(default_factory=list)  # of every step, where known
    joules: float | None = None  # of all decode steps, where they are measured


@dataclass
class Timings:
    """What one model took over all repeats."""

    prefill_ms: list[float] = field(default_factory=list)
    decode_ms: list[list[float]] = field(default_factory=list)  # [repeat][token]
    parts_ms: list[dict[str, float]] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)  # of each repeat

    def add(self, generation: Generation) -> None:
        self.prefill_ms.append(generation.prefill_ms)
        self.decode_ms.append(generation.decode_ms)
        self.parts_ms += generation.parts_ms
        self.joules.append(generation.joules)

    @property
    def tokens_ms(self) -> list[float]:
        """Every decode step of every repeat."""
        return [value for repeat in self.decode_ms for value in repeat]

    @property
    def repeats_ms(self) -> list[float]:
        """The median decode step of every repeat."""
        return [summarise(repeat)[0] for repeat in self.decode_ms]


@dataclass(frozen=True)
class Subject:
    """A model that was timed: with what decoder, and what it took."""

    model: Any
    decoder: Decoder
    timings: Timings


@dataclass(frozen=True)
class TokenBytes:
    """What one decode step moves, bytes: the weights once, the cache, the activations."""

    weights: int
    kv: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations


def token_bytes(subject: Subject, config: Lengths, dtype: str) -> TokenBytes:
    """Of a mean decode step. What is read of a growing cache is its mean length over the steps."""
    kv = subject.decoder.kv_bytes()
    if subject.decoder.mode in GROWING:
        last = config.prompt_tokens + config.decode_tokens
        mean = config.prompt_tokens + (config.decode_tokens + 1) / 2
        kv = round(kv * mean / last)
    activations = activation_bytes_per_token(subject.model, getattr(torch, dtype))
    weights = weight_bytes_per_token(subject.model) - subject.decoder.spared_bytes()
    return TokenBytes(weights, kv, activations)


def all_metrics(
    context: SuiteContext,
    config: Lengths,
    subjects: dict[str, Subject],
    peak: MemoryPeak,
    bandwidth: float,
    why_no_baseline: str,
    meter: Meter | str,
) -> list[Metric]:
    """Metrics of the model and, with the prefix "baseline_", of its full-precision baseline.

    bandwidth    bytes a second that the device was seen to read in this run.
    why_no_baseline  "" when the baseline was measured or the model is full precision itself.
    meter        what measured energy, or why nothing did.
    """
    task = task_of(config)
    shared = conditions(context.device, context.dtype, context.devices) | {"batch": "1"}
    metrics = []
    for name, subject in subjects.items():
        prefix = "" if name == "model" else "baseline_"
        kernel = "torch"
        if context.quantized and name == "model":
            kernel = ways_of(subject.model) or context.kernel
        notes = shared | {"kernel": kernel} | place_notes(subject.model)
        if name == "model" and why_no_baseline:
            notes["full-precision baseline"] = why_no_baseline
        energy = _energy(prefix, task, subject.timings, config, meter)
        if isinstance(energy, str):
            notes[ENERGY] = f"not measured: {energy}"
        else:
            metrics += energy
        metrics += _speed(prefix, task, subject, config, notes)
        metrics += _parts(prefix, task, subject.timings)
        metrics += _weights(prefix, subject)
        moved = token_bytes(subject, config, context.dtype)
        metrics += _roofline(prefix, task, subject, moved, bandwidth)
    if "baseline" in subjects:
        kernel = ways_of(subjects["model"].model) or context.kernel
        notes = shared | {"kernel": kernel} | place_notes(subjects["model"].model)
        if over := place_notes(subjects["baseline"].model).get("devices"):
            notes["baseline devices"] = over
        metrics += _speed_up(task, subjects, notes)
    metrics.append(
        Metric(
            name="read_bandwidth",
            task="device",
            value=bandwidth / 1e9,
            unit="GB/s",
            n=1,
            n_unit="devices",
            higher_is_better=True,
            notes=shared | {"measured": "fastest of several sums over an array beyond all caches"},
        )
    )
    metrics.append(_bytes("peak_memory_bytes", task, peak.bytes, peak.notes))
    if peak.working_bytes is not None:
        metrics.append(_bytes("working_memory_bytes", task, peak.working_bytes, peak.notes))
    return metrics


def task_of(config: Lengths) -> str:
    """The name of the lengths in records."""
    return f"prompt{config.prompt_tokens}_decode{config.decode_tokens}"


def ways_of(model: Any) -> str:
    """How packed layers of a model are multiplied: "cpu", "cpu (dequantizes first)", or both."""
    return ", ".join(sorted({m.way for m in model.modules() if isinstance(m, PackedLinear)}))


def _speed(
    prefix: str, task: str, subject: Subject, config: Lengths, notes: dict[str, str]
) -> list[Metric]:
    decoder, timings = subject.decoder, subject.timings
    mode = decoder.mode + (f" ({decoder.reason})" if decoder.reason else "")
    metrics = []
    for phase, values, n_unit, tokens in (
        ("prefill", timings.prefill_ms, "repeats", config.prompt_tokens),
        ("decode", timings.tokens_ms, "tokens", 1),
    ):
        median, quantiles = summarise(values)
        said = notes | ({"decode mode": mode} if phase == "decode" else {})
        metrics += [
            Metric(
                name=f"{prefix}{phase}_ms",
                task=task,
                value=median,
                unit="ms",
                n=len(values),
                n_unit=n_unit,
                quantiles=quantiles,
                notes=said,
            ),
            Metric(
                name=f"{prefix}{phase}_tokens_per_s",
                task=task,
                value=1e3 * tokens / median,
                unit="tokens/s",
                n=len(values),
                n_unit=n_unit,
                higher_is_better=True,
                notes=said,
            ),
        ]
    return metrics


def _parts(prefix: str, task: str, timings: Timings) -> list[Metric]:
    """What a decode step went to, where the decoder tells: medians over all steps."""
    names = timings.parts_ms[0] if timings.parts_ms else ()
    found = {name: summarise([step[name] for step in timings.parts_ms]) for name in names}
    return [
        Metric(
            name=f"{prefix}decode_{name}_ms",
            task=task,
            value=median,
            unit="ms",
            n=len(timings.parts_ms),
            n_unit="tokens",
            quantiles=quantiles,
        )
        for name, (median, quantiles) in found.items()
    ]


def _energy(
    prefix: str, task: str, timings: Timings, config: Lengths, meter: Meter | str
) -> list[Metric] | str:
    """Joules a decoded token, or why they are not known."""
    if isinstance(meter, str):
        return meter
    if reason := why_too_short(meter, [sum(repeat) for repeat in timings.decode_ms]):
        return reason
    known = [value for value in timings.joules if value is not None]
    if len(known) < len(timings.joules):
        return f"{meter.what} could not be read while tokens were decoded"
    median, quantiles = summarise([value / config.decode_tokens for value in known])
    return [
        Metric(
            name=f"{prefix}joules_per_token",
            task=task,
            value=median,
            unit="J",
            n=len(known),
            n_unit="repeats",
            quantiles=quantiles,
            notes={"measured": f"{meter.what}, idle power and other processes included"},
        )
    ]


def size_metrics(
    model: Any, config: Lengths, workspace: int, cache: CacheShape | None, positions: int | None
) -> list[Metric]:
    """What serving memory at any context is computed from (harness.suites.serving).

    workspace  bytes beside weights and cache while the prompt was read.
    positions  that the model can attend to; None: nothing bounds them.
    """
    weights = weight_count(model)
    bits = Metric(
        name="model_bits_per_weight",
        task="model",
        value=8 * weight_bytes(model) / weights,
        unit="bits",
        n=weights,
        n_unit="weights",
        notes={"counted": "weight_bytes over all weights, embeddings, head and norms included"},
    )
    count = Metric(
        name="weight_count",
        task="model",
        value=float(weights),
        unit="weights",
        n=1,
        n_unit="models",
        notes={"counted": "of all parameters, tied tensors once; a packed layer's as unpacked"},
    )
    taken = _bytes("workspace_bytes", task_of(config), workspace, {"counted": WORKSPACE})
    if cache is None:
        return [count, bits, taken]
    bound = {"positions": UNBOUNDED if positions is None else str(positions)}
    kept = [
        _bytes(
            "cache_bytes_per_position", ALL if window is None else f"{WINDOW}{window}", size, bound
        )
        for window, size in cache.per_position.items()
    ]
    return [count, bits, taken, *kept, _bytes("cache_state_bytes", "model", cache.state, bound)]


def _weights(prefix: str, subject: Subject) -> list[Metric]:
    tied = {"counted": "parameters and buffers in memory, tied tensors once"}
    packed = ["the output"] * isinstance(subject.model.get_output_embeddings(), PackedLinear)
    packed += ["the token embeddings"] * isinstance(
        subject.model.get_input_embeddings(), QuantEmbedding
    )
    tables = {
        "counted": "token, position and output embeddings: "
        f"{' and '.join(packed) or 'not'} quantized, in weight_bytes"
    }
    return [
        _bytes(f"{prefix}weight_bytes", "model", weight_bytes(subject.model), tied),
        _bytes(f"{prefix}embedding_bytes", "model", embedding_bytes(subject.model), tables),
    ]


def _roofline(
    prefix: str, task: str, subject: Subject, moved: TokenBytes, bandwidth: float
) -> list[Metric]:
    """Bytes a token, how fast decoding went through them, and what the device could have done."""
    seconds = summarise(subject.timings.tokens_ms)[0] / 1e3
    n = len(subject.timings.tokens_ms)
    counted = {
        "weights": str(moved.weights),
        "KV cache": str(moved.kv),
        "activations": str(moved.activations),
    }
    rates = {
        "decode_bandwidth": (moved.total / seconds / 1e9, "GB/s"),
        "roofline_share": (moved.total / seconds / bandwidth, "fraction"),
    }
    return [
        _bytes(f"{prefix}bytes_per_token", task, moved.total, counted),
        *(
            Metric(
                name=prefix + name,
                task=task,
                value=value,
                unit=unit,
                n=n,
                n_unit="tokens",
                higher_is_better=True,
            )
            for name, (value, unit) in rates.items()
        ),
    ]


def _speed_up(task: str, subjects: dict[str, Subject], notes: dict[str, str]) -> list[Metric]:
    """Time of the full-precision baseline over the quantized model's: above 1 is faster than it."""
    model, baseline = subjects["model"].timings, subjects["baseline"].timings
    pairs = {
        "prefill_speedup": paired_ratio(baseline.prefill_ms, model.prefill_ms),
        "decode_speedup": paired_ratio(baseline.repeats_ms, model.repeats_ms),
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
                higher_is_better=True,
                quantiles=quantiles,
                notes=notes,
            )
        )
    return metrics


def _bytes(name: str, task: str, value: int, notes: dict[str, str]) -> Metric:
    return Metric(
        name=name, task=task, value=float(value), unit="bytes", n=1, n_unit="models", notes=notes
    )
