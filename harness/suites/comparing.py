"""Measurements of the divergence suite: the effect of quantization, and that of the kernel.

Two models can give a text the same perplexity and still differ in their predictions. Here the
next-token distributions are compared, position by position on the same windows:
KL(full precision || quantized), with the share of positions whose most likely token differs; and
KL(reference kernel || kernel) of the same packed weights, the error of the kernel. The latter has a
bound per dtype; a figure above it is marked. Log-softmax and the sum over the vocabulary are
computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from harness.data import protocols, vocabulary
from harness.data.protocols import TokenWindows
from harness.records.record import Metric
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.comparison import Comparison
from harness.suites.compressed import ENTRIES, Compressed
from harness.suites.confidences import CONFIDENCES, confidence_names
from harness.suites.logits import Logits
from harness.suites.reading import Texts
from harness.suites.reference import Reference, noise_windows
from harness.suites.scoring import Score

# Bytes of the measured model's logits, or of what its head makes them of, that are kept from the
# first comparison for the second.
KEPT_BYTES = 1 << 28
# Largest mean KL between kernel and dequantized logits that rounding explains, in nats. The
# embedded model at 4 bits has 1.4e-13, 5.0e-7 and 2.2e-5; the margin is for deeper models and other
# kernels. A wrong scale or code gives far more.
PARITY_BOUND = {"float32": 1e-9, "float16": 5e-5, "bfloat16": 2e-3}

NOISE = "full precision || the same with the rounding noise of bfloat16 after every layer"

LogitsOf = Callable[[Tensor], Logits]


@torch.inference_mode()
def run(context: SuiteContext, config: Texts) -> SuiteResult:
    """Compare on every protocol; a full-precision model only with itself, for the noise floors.

    A checkpoint that was quantized elsewhere has no original, so only its kernel is compared.

    Raises ProtocolError or TextError if a text is not available, DivergenceError as in `compare`.
    """
    texts = {name: windows_of(context, config, name) for name in config.protocols}
    found: dict[str, dict[str, Comparison]] = {name: {} for name in texts}
    against_full = context.quantized and context.has_original
    passes = int(against_full) + int(context.quantized)
    total = sum(passes * len(each.windows) for each in texts.values())
    if context.has_original:
        total += sum(len(noise_windows(each.windows)) for each in texts.values())
    done = 0

    def advance(name: str, windows: int = 1) -> None:
        nonlocal done
        done += windows
        context.progress(done, total, name)

    model = _kept(_logits(context.model, context.device), KEPT_BYTES if passes == 2 else 0)
    if context.has_original:
        full = Reference(context)
        for name, each in texts.items():
            first = noise_windows(each.windows)
            with full.making(each.windows if against_full else first):
                if against_full:
                    found[name]["quantized"] = _pass(full.window, model, each, name, advance)
                found[name]["noise"] = full.noise(first)
                advance(name, len(first))
        del full  # three models need not fit into memory at once
    if context.quantized:
        reference = _logits(context.load_reference(), context.device)
        for name, each in texts.items():
            found[name]["kernel"] = _pass(
                lambda window: reference(window[None]), model, each, name, advance
            )
            found[name]["floor"] = _floor(reference, each.windows)
    else:
        for name, each in texts.items():
            found[name]["floor"] = _floor(model, each.windows)
    metrics = [
        metric for name, each in texts.items() for metric in _metrics(context, each, found[name])
    ]
    inputs = {f"tokens:{name}": each.token_hash for name, each in texts.items()}
    inputs |= {f"text:{name}": each.text_hash for name, each in texts.items()}
    return SuiteResult(metrics, inputs, list(_samples(found)))


def windows_of(context: SuiteContext, config: Texts, name: str) -> TokenWindows:
    """The windows of a protocol, checked against the vocabularies of tokenizer and model."""
    found = protocols.windows(
        name,
        context.tokenizer,
        protocols.context_length(context.model.config, context.context_length),
        path=config.paths.get(name),
        data_dir=context.data_dir,
        documents=config.documents,
        sequences=config.max_windows,
    )
    vocabulary.check_windows(found, context.tokenizer, context.model)
    return found


def _logits(model: Any, device: str) -> LogitsOf:
    """Logits [batch, length, vocabulary] of tokens [batch, length], by parts if they are large."""

    def of(tokens: Tensor) -> Logits:
        return Logits(model, tokens.to(device))

    return of


def _kept(logits: LogitsOf, most: int) -> LogitsOf:
    """The same logits; the blocks run once for each window while it takes at most `most` bytes."""
    held: dict[bytes, Logits] = {}

    def of(tokens: Tensor) -> Logits:
        name = tokens.numpy().tobytes()
        found = held.get(name)
        if found is None:
            found = logits(tokens)
            if sum(each.nbytes for each in held.values()) + found.nbytes <= most:
                held[name] = found
        return found

    return of


def _pass(
    first: Callable[[Tensor], Logits | Compressed],
    second: LogitsOf,
    text: TokenWindows,
    name: str,
    advance: Callable[[str], None],
) -> Comparison:
    comparison = Comparison()
    for window in text.windows:
        comparison.add(first(window), second(window[None]))
        advance(name)
    return comparison


def _floor(model: LogitsOf, windows: Sequence[Tensor]) -> Comparison:
    """The first window alone against the same window twice in a batch: differences are rounding."""
    window = windows[0]
    comparison = Comparison()
    comparison.add(model(window[None]), model(torch.stack([window, window])))
    return comparison


def _metrics(
    context: SuiteContext, text: TokenWindows, found: dict[str, Comparison]
) -> Iterator[Metric]:
    protocol = text.protocol
    notes = {
        "protocol": f"{protocol.id} v{protocol.version}: {protocol.summary}",
        "text": text.source,
        "token_hash": text.token_hash,
        "special_tokens": text.special,
        "windows": str(len(text.windows)),
        "stderr": "over windows",
    }
    floor = {"floor": f"{max(found['floor'].mean.mean, 0.0):.2g} nat from rounding alone"}
    if "quantized" in found:
        comparison = found["quantized"]
        said = notes | {"of": "full precision || quantized"} | floor | _of_reference(comparison)
        yield from figures(protocol.id, "kl_divergence", comparison, said)
        yield rate(protocol.id, "top1_flip_rate", comparison.flip_rate, said)
        yield from _by_confidence(protocol.id, comparison, notes)
        yield from _sampling(protocol.id, comparison, notes)
    if "kernel" in found:
        said = notes | floor | _verdict(context, found["kernel"])
        yield from figures(protocol.id, "kernel_kl", found["kernel"], said)
        flips = found["kernel"].flip_rate
        agreement = Score(
            [t - f for f, t in zip(flips.nll, flips.tokens, strict=True)], flips.tokens
        )
        yield rate(protocol.id, "kernel_top1_agreement", agreement, said, higher=True)
    if "noise" in found:
        comparison = found["noise"]
        note = {"of": NOISE, "windows": str(len(comparison.windows))}
        yield from figures(protocol.id, "kl_noise", comparison, notes | note)
        yield rate(protocol.id, "noise_flip_rate", comparison.flip_rate, notes | note)
    note = {"of": "one window alone || the same beside itself"}
    yield next(figures(protocol.id, "kl_floor", found["floor"], notes | note))


def _of_reference(comparison: Comparison) -> dict[str, str]:
    """A note on a compressed reference; none where logits were compared as they are."""
    reference = comparison.compressed
    if reference is None:
        return {}
    said = f"{ENTRIES} of {reference.vocabulary} logits a position"
    return {"reference": f"{said}, {reference.share:.1%} of the bytes of float32"}


def _sampling(task: str, comparison: Comparison, notes: dict[str, str]) -> Iterator[Metric]:
    """What compression adds to the uncertainty of the mean, and what the mean is at least."""
    error, certain = comparison.sampling_error, comparison.certain
    if error is None or certain is None:
        return
    shared: dict[str, Any] = {"task": task, "unit": "nat", "n_unit": "tokens"}
    shared["n"] = sum(comparison.mean.tokens)
    of = {"of": "standard error of the mean from the sampled logits of the reference"}
    yield Metric(name="kl_sampling", value=error, **shared, notes=notes | of)
    of = {"of": "lower bound of the mean, whatever was sampled"}
    yield Metric(name="kl_certain", value=certain, **shared, notes=notes | of)


def _by_confidence(task: str, comparison: Comparison, notes: dict[str, str]) -> Iterator[Metric]:
    """Divergence and flips of positions by the probability of the reference's first choice."""
    for name, interval, found in zip(
        confidence_names(), pairwise(CONFIDENCES), comparison.by_confidence(), strict=True
    ):
        if found is None:
            continue
        nats, flips = found
        said = notes | {"confidence": f"{interval[0]:g} to {interval[1]:g}"}
        yield _mean(task, f"kl_{name}", nats, "nat", notes=said)
        yield rate(task, f"flips_{name}", flips, said)


def _verdict(context: SuiteContext, kernel: Comparison) -> dict[str, str]:
    """Notes on the parity: what is compared, the bound, and whether it holds."""
    from quant.input_operator import rounds_inputs

    bound = PARITY_BOUND[context.dtype]
    held = kernel.mean.mean <= bound
    said = "holds" if held else f"BROKEN: mean above {bound:g} nat"
    if rounds_inputs(context.model):
        said = "not judged: rounded inputs turn the last bit of a sum into whole steps"
    return {
        "of": f"dequantized (reference kernel) || {context.kernel} kernel",
        "kernel": context.kernel,
        "bound": f"{bound:g} nat for {context.dtype}",
        "parity": said,
    }


def figures(
    task: str, name: str, comparison: Comparison, notes: dict[str, str]
) -> Iterator[Metric]:
    """Mean with standard error and percentiles, then the 99.9th of these and the largest."""
    score = comparison.mean
    yield _mean(task, name, score, "nat", quantiles=comparison.quantiles, notes=notes)
    for end, value in (("p999", comparison.p999), ("max", comparison.largest)):
        yield Metric(
            name=f"{name}_{end}",
            task=task,
            value=value,
            unit="nat",
            n=sum(score.tokens),
            n_unit="tokens",
            notes=notes,
        )


def rate(task: str, name: str, score: Score, notes: dict[str, str], higher: bool = False) -> Metric:
    """The share of positions that `score` counts, with its standard error."""
    return _mean(task, name, score, "fraction", higher_is_better=higher, notes=notes)


def _mean(task: str, name: str, score: Score, unit: str, **more: Any) -> Metric:
    """The mean of a score over its positions, with its standard error."""
    return Metric(
        name=name,
        task=task,
        value=score.mean,
        unit=unit,
        n=sum(score.tokens),
        n_unit="tokens",
        stderr=score.stderr,
        **more,
    )


def _samples(found: dict[str, dict[str, Comparison]]) -> Iterator[dict[str, Any]]:
    for protocol, comparisons in found.items():
        for kind, comparison in comparisons.items():
            pairs = zip(comparison.divergence, comparison.flips, strict=True)
            for window, (values, flips) in enumerate(pairs):
                yield {
                    "protocol": protocol,
                    "of": kind,
                    "window": window,
                    "tokens": len(values),
                    "kl": math.fsum(values.tolist()),
                    "flips": flips,
                }
