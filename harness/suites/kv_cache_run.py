"""Measure key-value caches: perplexity, and divergence from the full cache of the same model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.data import protocols, vocabulary
from harness.data.protocols import TokenWindows
from harness.records.items import WINDOWS, make_items
from harness.records.record import Metric
from harness.report.curves import PANEL
from harness.suites.at_once import LOGITS_AT_ONCE, POSITIONS_AT_ONCE
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.distributions import compare
from harness.suites.kv_cache_table import (
    BUDGET,
    EXCESS_BY_POSITION,
    FULL,
    KL_BY_POSITION,
    LOSS_BY_POSITION,
    READING,
    SCHEME,
    SETTINGS,
    SIMULATED,
    WHERE,
)
from harness.suites.logits import Logits, parts
from harness.suites.positions import position_edges
from harness.suites.scoring import Score, ScoreError, token_losses
from quant.forward_products import forward_products
from quant.kv.attention import full_cache, look, using
from quant.kv.base import Cache
from quant.kv.support import Chosen


class Windows(Protocol):
    """The texts, lengths, budgets and tokens of the suite's settings."""

    protocols: list[str]
    paths: dict[str, str]
    lengths: list[int]
    bits: list[float]
    tokens: int


@dataclass
class Measured:
    """What was measured with one cache; float64 [predictions] of each window, in order.

    loss        negative log-likelihood of each token but the first, nats.
    divergence  KL(full cache || this one) of the same predictions, nats; none of the full cache.
    excess      loss less that with the full cache, nats; none of the full cache.
    agrees      whether the most likely token is that of the full cache.
    """

    loss: list[Tensor] = field(default_factory=list)
    divergence: list[Tensor] = field(default_factory=list)
    excess: list[Tensor] = field(default_factory=list)
    agrees: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """A cache in one place of the table; bits: the budget, None for the full cache."""

    label: str
    cache: Cache
    stored: float
    bits: float | None = None
    reading: str = ""


def run(context: SuiteContext, config: Windows, schemes: Sequence[Chosen]) -> SuiteResult:
    """Measure all schemes on the same windows, each text and length for itself.

    Raises KvCacheError for a model whose cache cannot be replaced, or budgets that cannot be met.
    """
    metrics: list[Metric] = []
    inputs: dict[str, str] = {}
    own = protocols.stated_length(context.model.config)
    with forward_products(context.kernel, context.model):
        for name in config.protocols:
            for length in config.lengths or [own or 0]:
                found = protocols.windows(
                    name,
                    context.tokenizer,
                    length,
                    path=config.paths.get(name),
                    data_dir=context.data_dir,
                    sequences=max(1, config.tokens // length),
                )
                vocabulary.check_windows(found, context.tokenizer, context.model)
                metrics += _text(context, config, schemes, found, length)
                inputs |= {f"tokens:{name}@{length}": found.token_hash}
                inputs |= {f"text:{name}": found.text_hash}
    return SuiteResult(metrics, inputs)


def _text(
    context: SuiteContext,
    config: Windows,
    schemes: Sequence[Chosen],
    found: TokenWindows,
    length: int,
) -> Iterator[Metric]:
    """The figures of all caches on the windows of one text."""
    model = context.model
    seen = look(model, found.windows[0][None].to(context.device))
    full = Setting(FULL, full_cache(), 8.0 * model.dtype.itemsize)
    settings = [full]
    for bits in config.bits:
        for one in schemes:
            cache = one.solve(seen.shape, length, bits)
            scheme = one.scheme
            settings.append(Setting(scheme.label, cache, cache.bits(length), bits, scheme.reading))
    measured = [Measured() for _ in settings]
    done, total = 0, len(found.windows) * len(settings)
    for window in found.windows:
        reference: Logits | None = None
        for setting, each in zip(settings, measured, strict=True):
            context.progress(done, total, f"{found.protocol.id}: {setting.label}")
            reference = _window(context, window, setting.cache, reference, each)
            if each is not measured[0]:
                each.excess.append(each.loss[-1] - measured[0].loss[-1])
            done += 1
    context.progress(done, total, found.protocol.id)
    notes = {
        "text": found.source,
        "protocol": f"{found.protocol.id} v{found.protocol.version}: {found.protocol.summary}",
        "token_hash": found.token_hash,
        "windows": f"{len(found.windows)} of {length}",
        "stderr": "over windows",
        "cache": SIMULATED,
        "own attention": f"{seen.difference:.1g} standard deviations of logits from it",
    }
    for setting, each in zip(settings, measured, strict=True):
        yield from _metrics(found, setting, each, length, seen.numbers * length, notes)


@torch.inference_mode()
def _window(
    context: SuiteContext,
    window: Tensor,
    cache: Cache,
    reference: Logits | None,
    into: Measured,
) -> Logits:
    """Measure one window [tokens]; returns the logits of the full cache, which come first."""
    ids = window[None].to(context.device)
    with using(context.model, cache):
        found = Logits(context.model, ids)
    held: dict[str, list[Tensor]] = {"loss": [], "divergence": [], "agrees": []}
    for part in parts(found, LOGITS_AT_ONCE, POSITIONS_AT_ONCE, len(window) - 1):
        here = found[:, part][0]
        held["loss"].append(token_losses(here, ids[0, part.start + 1 : part.stop + 1]).cpu())
        if reference is not None:
            compared = compare(reference[:, part][0], here)
            held["divergence"].append(compared.divergence)
            held["agrees"].append((~compared.flipped).double())
    into.loss.append(torch.cat(held["loss"]))
    if not bool(into.loss[-1].isfinite().all()):
        raise ScoreError(
            "a window has no finite likelihood; if the weights are finite, use another dtype "
            f"than {context.dtype} (model.dtype=float32)"
        )
    if reference is None:
        return found
    into.divergence.append(torch.cat(held["divergence"]))
    into.agrees.append(torch.cat(held["agrees"]))
    return reference


def _metrics(
    found: TokenWindows,
    setting: Setting,
    measured: Measured,
    length: int,
    numbers: int,
    notes: Mapping[str, str],
) -> Iterator[Metric]:
    """The figures of one cache; numbers: those of a full cache at the context."""
    where = f"{found.protocol.id}@{length}"
    task = where if setting.bits is None else f"{where} {setting.bits:g} bits"
    name = f"{task} {setting.label}"
    said = {**notes, SCHEME: setting.label, WHERE: where, PANEL: task}
    if setting.bits is not None:
        words = ", ".join(setting.cache.words)
        said |= {BUDGET: f"{setting.bits:g}", SETTINGS: words}
    if setting.reading:
        said[READING] = setting.reading
    loss = _score(measured.loss)
    scale = math.exp(loss.mean)
    items = make_items(WINDOWS, found.token_hash, loss.nll, loss.tokens, exponential=True)
    yield _mean(name, "perplexity", loss, "ppl", said, value=scale, scale=scale, items=items)
    yield Metric(name="bits_per_number", task=name, value=setting.stored, unit="bits", n=numbers,
                 n_unit="numbers", notes=said)  # fmt: skip
    yield Metric(name="cache_bytes", task=name, value=setting.stored * numbers / 8, unit="bytes",
                 n=numbers, n_unit="numbers", notes=said)  # fmt: skip
    if not measured.divergence:
        yield from _curve(name, LOSS_BY_POSITION, measured.loss, length, said)
    else:
        yield _mean(name, "kl_divergence", _score(measured.divergence), "nat", said)
        agreed = _score(measured.agrees)
        yield _mean(name, "top1_agreement", agreed, "fraction", said, higher_is_better=True)
        yield from _curve(name, KL_BY_POSITION, measured.divergence, length, said)
        yield from _curve(name, EXCESS_BY_POSITION, measured.excess, length, said)


def _curve(
    name: str, metric: str, values: Sequence[Tensor], length: int, notes: Mapping[str, str]
) -> Iterator[Metric]:
    """The mean of every interval of positions."""
    for first, last in pairwise(position_edges(length)):
        inside = _score([each[first - 1 : last - 1] for each in values])
        at = {
            "position": f"{(first + last - 1) / 2:g}",
            "positions": f"{first} to {last - 1} tokens before",
        }
        yield _mean(f"{name}:{first}-{last - 1}", metric, inside, "nat", {**notes, **at})


def _score(values: Sequence[Tensor]) -> Score:
    return Score([float(each.sum()) for each in values], [len(each) for each in values])


def _mean(
    task: str,
    name: str,
    score: Score,
    unit: str,
    notes: Mapping[str, str],
    value: float | None = None,
    scale: float = 1.0,
    **more: Any,
) -> Metric:
    """The mean of a score with its standard error, or a function of it with slope `scale`."""
    return Metric(
        name=name,
        task=task,
        value=score.mean if value is None else value,
        unit=unit,
        n=sum(score.tokens),
        n_unit="tokens",
        stderr=None if score.stderr is None else scale * score.stderr,
        notes=dict(notes),
        **more,
    )
