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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.data import protocols, vocabulary
from harness.data.protocols import TokenWindows
from harness.errors import BitsweepError
from harness.records.record import Metric
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.logits import Logits, parts
from harness.suites.reading import Texts
from harness.suites.scoring import Score

# Bytes of the measured model's logits, or of what its head makes them of, that are kept from the
# first comparison for the second.
KEPT_BYTES = 1 << 28
# Positions that are compared at a time, and the logits of them: 32 MiB in float32 and twice that in
# float64, of which there are three at once. glibc maps blocks from 32 MiB on by themselves; its
# heap would be left in pieces by smaller ones (1.1 GB were taken where 300 MB were needed).
POSITIONS_AT_ONCE = 512
LOGITS_AT_ONCE = 2**23
LEVELS = {"p10": 0.10, "p50": 0.50, "p90": 0.90, "p99": 0.99}
# Largest mean KL between kernel and dequantized logits that rounding explains, in nats. The
# embedded model at 4 bits has 1.4e-13, 5.0e-7 and 2.2e-5; the margin is for deeper models and other
# kernels. A wrong scale or code gives far more.
PARITY_BOUND = {"float32": 1e-9, "float16": 5e-5, "bfloat16": 2e-3}

LogitsOf = Callable[[Tensor], Logits]


class DivergenceError(BitsweepError):
    """Distributions that cannot be compared."""


@dataclass
class Comparison:
    """Two models on the same windows: KL(first || second) and top-1 disagreement by position."""

    divergence: list[Tensor] = field(default_factory=list)  # float64 [positions] of each window
    flips: list[int] = field(default_factory=list)

    def add(self, first: Tensor | Logits, second: Tensor | Logits) -> None:
        """Add one window: the last rows of logits [batch, positions, vocabulary] of both models."""
        larger = max(first, second, key=lambda each: each.shape[0])
        found = [
            compare(first[-1:, part][0], second[-1:, part][0])
            for part in parts(larger, LOGITS_AT_ONCE, POSITIONS_AT_ONCE)
        ]
        self.divergence.append(torch.cat([values for values, _ in found]))
        self.flips.append(sum(flips for _, flips in found))

    @property
    def mean(self) -> Score:
        """Mean KL per position, with its standard error over windows."""
        return Score([float(each.sum()) for each in self.divergence], self._positions)

    @property
    def flip_rate(self) -> Score:
        return Score([float(each) for each in self.flips], self._positions)

    @property
    def quantiles(self) -> dict[str, float]:
        values = torch.cat(self.divergence)
        return {name: torch.quantile(values, level).item() for name, level in LEVELS.items()}

    @property
    def largest(self) -> float:
        return max(float(each.max()) for each in self.divergence)

    @property
    def _positions(self) -> list[int]:
        return [len(each) for each in self.divergence]


def compare(first: Tensor, second: Tensor) -> tuple[Tensor, int]:
    """Compare logits [positions, vocabulary] of two models.

    Returns KL(first || second), float64 [positions] in nats, and the number of positions whose most
    likely token differs. Raises DivergenceError for logits that are not finite or differ in shape.
    """
    if first.shape != second.shape:
        raise DivergenceError(
            f"logits of shapes {list(first.shape)} and {list(second.shape)} cannot be compared: "
            "the two models have different vocabularies"
        )
    one, other = first.double().log_softmax(-1), second.double().log_softmax(-1)
    flips = int((one.argmax(-1) != other.argmax(-1)).sum())
    difference = torch.sub(one, other, out=other)
    value = one.exp_().mul_(difference).sum(-1)
    if not bool(value.isfinite().all()):
        bad = int((~value.isfinite()).sum())
        raise DivergenceError(
            f"{bad} of {len(value)} positions have no finite divergence: logits are NaN or "
            "infinite; use another dtype (model.dtype=float32)"
        )
    return value.cpu(), flips


def run(context: SuiteContext, config: Texts) -> SuiteResult:
    """Compare on every protocol; a full-precision model only with itself, for the noise floor.

    A checkpoint that was quantized elsewhere has no original, so only its kernel is compared.

    Raises ProtocolError or TextError if a text is not available, DivergenceError as in `compare`.
    """
    texts = {name: windows_of(context, config, name) for name in config.protocols}
    found: dict[str, dict[str, Comparison]] = {name: {} for name in texts}
    passes = 2 if context.quantized and context.has_original else 1
    total = passes * sum(len(each.windows) for each in texts.values())
    done = 0

    def advance(name: str) -> None:
        nonlocal done
        done += 1
        context.progress(done, total, name)

    model = _kept(_logits(context.model, context.device), KEPT_BYTES if passes == 2 else 0)
    if context.quantized and context.has_original:
        full = _logits(context.load_baseline(), context.device)
        for name, each in texts.items():
            found[name]["quantized"] = _pass(full, model, each.windows, name, advance)
        del full  # three models need not fit into memory at once
    if context.quantized:
        reference = _logits(context.load_reference(), context.device)
        for name, each in texts.items():
            found[name]["kernel"] = _pass(reference, model, each.windows, name, advance)
            found[name]["floor"] = _floor(reference, each.windows)
    else:
        for name, each in texts.items():
            found[name]["floor"] = _floor(model, each.windows)
            advance(name)
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


@torch.inference_mode()
def _pass(
    first: LogitsOf,
    second: LogitsOf,
    windows: Sequence[Tensor],
    name: str,
    advance: Callable[[str], None],
) -> Comparison:
    comparison = Comparison()
    for window in windows:
        comparison.add(first(window[None]), second(window[None]))
        advance(name)
    return comparison


@torch.inference_mode()
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
        against = {"of": "full precision || quantized"} | floor
        yield from figures(protocol.id, "kl_divergence", found["quantized"], notes | against)
        yield rate(protocol.id, "top1_flip_rate", found["quantized"].flip_rate, notes | against)
    if "kernel" in found:
        said = notes | floor | _verdict(context, found["kernel"])
        yield from figures(protocol.id, "kernel_kl", found["kernel"], said)
        flips = found["kernel"].flip_rate
        agreement = Score(
            [t - f for f, t in zip(flips.nll, flips.tokens, strict=True)], flips.tokens
        )
        yield rate(protocol.id, "kernel_top1_agreement", agreement, said, higher=True)
    note = {"of": "one window alone || the same beside itself"}
    yield next(figures(protocol.id, "kl_floor", found["floor"], notes | note))


def _verdict(context: SuiteContext, kernel: Comparison) -> dict[str, str]:
    """Notes on the parity: what is compared, the bound, and whether it holds."""
    bound = PARITY_BOUND[context.dtype]
    held = kernel.mean.mean <= bound
    return {
        "of": f"dequantized (reference kernel) || {context.kernel} kernel",
        "kernel": context.kernel,
        "bound": f"{bound:g} nat for {context.dtype}",
        "parity": "holds" if held else f"BROKEN: mean above {bound:g} nat",
    }


def figures(
    task: str, name: str, comparison: Comparison, notes: dict[str, str]
) -> Iterator[Metric]:
    """Mean with standard error and percentiles, then the largest."""
    score = comparison.mean
    positions = sum(score.tokens)
    yield Metric(
        name=name,
        task=task,
        value=score.mean,
        unit="nat",
        n=positions,
        n_unit="tokens",
        stderr=score.stderr,
        quantiles=comparison.quantiles,
        notes=notes,
    )
    yield Metric(
        name=f"{name}_max",
        task=task,
        value=comparison.largest,
        unit="nat",
        n=positions,
        n_unit="tokens",
        notes=notes,
    )


def rate(task: str, name: str, score: Score, notes: dict[str, str], higher: bool = False) -> Metric:
    """The share of positions that `score` counts, with its standard error."""
    return Metric(
        name=name,
        task=task,
        value=score.mean,
        unit="fraction",
        n=sum(score.tokens),
        n_unit="tokens",
        stderr=score.stderr,
        higher_is_better=higher,
        notes=notes,
    )


def _samples(found: dict[str, dict[str, Comparison]]) -> Iterator[dict[str, Any]]:
    for protocol, comparisons in found.items():
        for kind, comparison in comparisons.items():
            for window, (values, flips) in enumerate(
                zip(comparison.divergence, comparison.flips, strict=True)
            ):
                yield {
                    "protocol": protocol,
                    "of": kind,
                    "window": window,
                    "tokens": len(values),
                    "kl": math.fsum(values.tolist()),
                    "flips": flips,
                }
