"""Perplexity: score windows independently, without sliding context.

Windows of unequal length share a batch, the shorter ones filled up at their end: attention is
causal, so no token sees what follows it, and what is filled up is not scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from harness.data import protocols, vocabulary
from harness.data.protocols import TokenWindows
from harness.data.texts import AbsentText
from harness.errors import BitsweepError
from harness.records.items import WINDOWS, make_items
from harness.records.record import Metric
from harness.report.published import LIMIT
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.logits import Logits, parts
from harness.suites.positions import BY_POSITION, position_edges
from harness.suites.reading import Texts
from quant.forward_products import forward_products

# Target of a position that is not scored, for functional.cross_entropy.
UNSCORED = -100
# A window shares a batch with longer ones if it has at least 7/8 of their tokens.
ALIKE = (7, 8)
# Positions whose logits are computed at a time, and the number of these: 16 MiB in float32. glibc
# would map blocks from 32 MiB on anew each time, and clear their pages.
POSITIONS_AT_ONCE = 512
LOGITS_AT_ONCE = 2**22
# Logits whose log-softmax is computed at a time: 4 MiB, which stay in the processor's cache.
CACHED_LOGITS = 2**20


class Scoring(Texts, Protocol):
    """The texts to score, and the number of full windows per batch."""

    batch_size: int


class ScoreError(BitsweepError):
    """The likelihood of a window is not finite."""


@dataclass(frozen=True)
class Score:
    """The likelihood of windows.

    nll     summed negative log-likelihood of each window, nats.
    tokens  scored tokens of each window.
    by_position  the same of the tokens in each interval of positions (harness.suites.positions);
            None for an interval without a token.
    """

    nll: list[float]
    tokens: list[int]
    by_position: tuple[Score | None, ...] = ()

    @property
    def mean(self) -> float:
        """Negative log-likelihood per token, nats."""
        return math.fsum(self.nll) / sum(self.tokens)

    @property
    def stderr(self) -> float | None:
        """Standard error of `mean` with windows as the sampling unit; None for a single window.

        The mean is a ratio of two sums over windows; its variance is that of the residuals
        nll - mean * tokens (delta method). Tokens of one window are correlated, so treating them
        as independent would underestimate the error. For windows of one length this is the
        standard deviation of the window means over the square root of their number.
        """
        count = len(self.nll)
        if count < 2:
            return None
        mean = self.mean
        squares = math.fsum((n - mean * t) ** 2 for n, t in zip(self.nll, self.tokens, strict=True))
        return math.sqrt(squares * count / (count - 1)) / sum(self.tokens)


def run(context: SuiteContext, config: Scoring) -> SuiteResult:
    """Measure perplexity and negative log-likelihood of each protocol, and every window's score.

    A text of the hub that cannot be had fails alone, if another can. Raises ProtocolError or
    TextError if no text is available, ScoreError if not finite.
    """
    metrics: list[Metric] = []
    failures: dict[str, str] = {}
    inputs: dict[str, str] = {}
    samples: list[dict[str, Any]] = []
    length = protocols.context_length(context.model.config, context.context_length)
    for name in config.protocols:
        try:
            found = protocols.windows(
                name,
                context.tokenizer,
                length,
                path=config.paths.get(name),
                data_dir=context.data_dir,
                documents=config.documents,
                sequences=config.max_windows,
            )
        except AbsentText as error:
            failures[name] = str(error)
            if len(failures) == len(config.protocols):
                raise
            continue
        result = score(context, found, config.batch_size)
        metrics += _metrics(found, result, length, config)
        metrics += _curve(found, result)
        inputs |= {f"tokens:{name}": found.token_hash, f"text:{name}": found.text_hash}
        samples += [
            {"protocol": name, "window": window, "tokens": tokens, "nll": nll}
            for window, (nll, tokens) in enumerate(zip(result.nll, result.tokens, strict=True))
        ]
    return SuiteResult(metrics, inputs, samples, failures)


@torch.inference_mode()
def score(context: SuiteContext, found: TokenWindows, batch_size: int) -> Score:
    """Return the likelihood of every window, in order.

    Each token except the first of a window is predicted from the earlier tokens of the window.
    """
    name = found.protocol.id
    vocabulary.check_windows(found, context.tokenizer, context.model)
    nll = [0.0] * len(found.windows)
    edges = position_edges(max(map(len, found.windows)))
    parts_of_nll = [[0.0] * len(nll) for _ in pairwise(edges)]
    done = 0
    context.progress(done, len(nll), name)
    lengths = [len(window) for window in found.windows]
    context_length = protocols.context_length(context.model.config, context.context_length)
    chosen = list(batches(lengths, batch_size * context_length))
    ids = [stacked([found.windows[index] for index in batch]) for batch in chosen]
    with forward_products(context.kernel, context.model):
        for batch, tokens, logits in zip(chosen, ids, _logits(context, ids, name), strict=True):
            counts = [lengths[index] for index in batch]
            values, intervals = window_nll(logits, tokens.to(context.device), counts, edges)
            for index, value in zip(batch, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise ScoreError(_not_finite(context, name, index, logits))
                nll[index] = value
            for interval, of_windows in zip(parts_of_nll, intervals.tolist(), strict=True):
                for index, value in zip(batch, of_windows, strict=True):
                    interval[index] = value
            done += len(batch)
            context.progress(done, len(nll), name)
    tokens_of = [length - 1 for length in lengths]
    return Score(nll, tokens_of, _by_position(parts_of_nll, lengths, edges))


def _by_position(
    nll: Sequence[Sequence[float]], lengths: Sequence[int], edges: Sequence[int]
) -> tuple[Score | None, ...]:
    """The scores of intervals: of each the windows that are long enough; None without any."""
    found = []
    for values, (first, last) in zip(nll, pairwise(edges), strict=True):
        inside = [
            (v, min(last, n) - first) for v, n in zip(values, lengths, strict=True) if n > first
        ]
        found.append(Score([v for v, _ in inside], [n for _, n in inside]) if inside else None)
    return tuple(found)


def _logits(context: SuiteContext, ids: list[Tensor], name: str) -> Iterator[Tensor | Logits]:
    """Logits of every batch of ids; running block by block gives identical bits."""
    if context.streamed is None:
        for tokens in ids:
            yield Logits(context.model, tokens.to(context.device))
        return
    what = f"{name}: blocks"
    yield from context.streamed(ids, lambda done, count: context.progress(done, count, what))


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield indices of windows in batches of at most `tokens` tokens, or of one window.

    Longer windows come first, so that a lack of memory shows at once; windows of one length stay in
    order. All windows of a batch are about as long as its first (ALIKE), so little is filled up.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        longest = lengths[batch[0]] if batch else 0
        alike = lengths[number] * ALIKE[1] >= longest * ALIKE[0]
        if batch and ((len(batch) + 1) * longest > tokens or not alike):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def stacked(windows: Sequence[Tensor]) -> Tensor:
    """Return windows as int64 [batch, tokens]; shorter ones repeat their last token at the end."""
    longest = max(map(len, windows))
    rows = [torch.cat([each, each[-1:].expand(longest - len(each))]) for each in windows]
    return torch.stack(rows)


def window_nll(
    logits: Tensor | Logits,
    tokens: Tensor,
    lengths: Sequence[int] | None = None,
    edges: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of each row: float64 [batch], nats.

    Also of its positions in the intervals between `edges`: float64 [intervals, batch].

    logits [batch, length, vocabulary] of any float dtype, tokens int64 [batch, length]; `lengths`
    are the tokens of each row that count (None: all).
    Log-softmax is computed in float32, the sum over positions in float64.
    """
    targets = tokens[:, 1:].clone()
    for row, count in enumerate(lengths or ()):
        targets[row, max(0, count - 1) :] = UNSCORED
    total = torch.zeros(len(tokens), dtype=torch.float64, device=logits.device)
    intervals = total.new_zeros(max(0, len(edges) - 1), len(tokens))
    for part in parts(logits, LOGITS_AT_ONCE, POSITIONS_AT_ONCE, tokens.shape[1] - 1):
        wanted = targets[:, part]
        losses = token_losses(logits[:, part].flatten(0, 1), wanted.flatten()).view(wanted.shape)
        total += losses.sum(1)
        for interval, (first, last) in zip(intervals, pairwise(edges), strict=True):
            # The logits of the first token are those at position 1.
            begin, end = max(0, first - 1 - part.start), last - 1 - part.start
            if end > begin:
                interval += losses[:, begin:end].sum(1)
    return total, intervals


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return float64 [n], nats, of logits [n, vocabulary] and targets [n]; 0 where UNSCORED."""
    rows = max(1, CACHED_LOGITS // logits.shape[1])
    found = [
        functional.cross_entropy(some.float(), wanted, reduction="none", ignore_index=UNSCORED)
        for some, wanted in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(found).double()


def _metrics(found: TokenWindows, result: Score, length: int, config: Scoring) -> Iterator[Metric]:
    protocol, mean, error = found.protocol, result.mean, result.stderr
    try:
        perplexity = math.exp(mean)
    except OverflowError:
        raise ScoreError(
            f"protocol {protocol.id}: the model gives {mean:.0f} nats per token, too many for a "
            "finite perplexity; its weights or its tokenizer are broken"
        ) from None
    notes = {
        "protocol": f"{protocol.id} v{protocol.version}: {protocol.summary}",
        "text": found.source,
        "windows": f"{len(found.windows)} of {'at most ' * (not protocol.one_length)}{length}",
        "token_hash": found.token_hash,
        "special_tokens": found.special,
        "batch_size": str(config.batch_size),
        "stderr": "over windows",
    }
    if config.max_windows is not None:
        notes[LIMIT] = f"max_windows={config.max_windows}"
    items = make_items(WINDOWS, found.token_hash, result.nll, result.tokens, exponential=True)
    for name, value, unit, scale, kept in (
        ("perplexity", perplexity, "ppl", perplexity, items),
        ("nll", mean, "nat", 1.0, None),  # the same losses
    ):
        yield Metric(
            name=name,
            task=protocol.id,
            value=value,
            unit=unit,
            n=found.scored,
            n_unit="tokens",
            stderr=None if error is None else error * scale,
            notes=notes,
            items=kept,
        )


def _curve(found: TokenWindows, result: Score) -> Iterator[Metric]:
    """The mean negative log-likelihood of every interval of positions in which there is a token."""
    edges = position_edges(max(map(len, found.windows)))
    for each, (first, last) in zip(result.by_position, pairwise(edges), strict=True):
        if each is None:
            continue
        yield Metric(
            name=BY_POSITION,
            task=f"{found.protocol.id}:{first}-{last - 1}",
            value=each.mean,
            unit="nat",
            n=sum(each.tokens),
            n_unit="tokens",
            stderr=each.stderr,
            notes={
                "position": f"{(first + last - 1) / 2:g}",
                "positions": f"{first} to {last - 1} tokens before",
                "token_hash": found.token_hash,
                "stderr": "over windows",
            },
        )


def _not_finite(context: SuiteContext, name: str, window: int, logits: Tensor | Logits) -> str:
    model = getattr(context.model.config, "name_or_path", "") or type(context.model).__name__
    bad = count = 0
    for part in parts(logits, LOGITS_AT_ONCE, POSITIONS_AT_ONCE):
        values = logits[:, part]
        bad, count = bad + int((~values.isfinite()).sum()), count + values.numel()
    return (
        f"window {window} of protocol {name} has no finite likelihood under {model} "
        f"({bad} of the {count} logits of its batch are not finite); if the weights are "
        f"finite, use another dtype than {context.dtype} (model.dtype=float32)"
    )
