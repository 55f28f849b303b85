"""What a planned set can show: minimum detectable effects of its figures, before it runs.

The share of answers that change, and the spread of paired window differences, are those of rows of
this model that the store has; without one, the first is assumed and the second gives no figure.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell.plan import CellPlan, PendingPlan
from harness.errors import StoreError
from harness.records.record import Items, Metric, Record
from harness.records.store import file_name, read_record
from harness.suites.base import Facts, Sample

if TYPE_CHECKING:
    from harness.cell.parts import Measuring

ASSUMED_DISCORDANCE = 0.1  # of answers that change, where no row of the model has been measured
MOST_NAMED = 3  # models of one line
MOST_READ = 100  # records of a model and suite, so that a plan stays quick

Figures = Mapping[tuple[str, str], Items]  # by task and metric


@dataclass(frozen=True)
class Measured:
    """What the store knows of a model and suite.

    counts        units of a figure under these settings, by task and metric.
    discordance   of rows with full precision: shares of answers that change, by task and metric.
    spread        of paired differences of losses, nats a token, by task and metric.
    """

    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    discordance: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    spread: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)


def detectable_lines(plans: Sequence[CellPlan | PendingPlan]) -> list[str]:
    """The minimum detectable effects of every model and suite of a plan, one a line.

    Empty unless a cell is quantized and has a suite that states its samples.
    """
    chosen: dict[tuple[str, str, str], list[tuple[CellPlan | PendingPlan, Measuring]]] = {}
    for plan in plans:
        for each in plan.cell.choices.suites:
            if not plan.identity.full_precision and each.suite.name not in plan.cell.absent:
                settings = json.dumps(
                    each.suite.semantics(each.config), sort_keys=True, default=str
                )
                key = (plan.identity.model, each.suite.name, settings)
                chosen.setdefault(key, []).append((plan, each))
    models = {model for model, _, _ in chosen}
    lines: dict[str, list[str]] = {}  # the models that a line is true of
    for (model, _, settings), same in chosen.items():
        for line in _of_suite(same, json.loads(settings)):
            lines.setdefault(line, []).append(model)
    if not lines:
        return []
    said = "what one comparison with full precision can show (80 % power, alpha 5 % two-sided):"
    named = {line: f"{_models(names)}, " * (len(models) > 1) for line, names in lines.items()}
    return [f"\n{said}", *(f"  {names}{line}" for line, names in named.items())]


def _models(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - MOST_NAMED} more" * (len(names) > MOST_NAMED)
    return f"{', '.join(names[:MOST_NAMED])}{more}"


def _of_suite(
    same: Sequence[tuple[CellPlan | PendingPlan, Measuring]], settings: Any
) -> Iterator[str]:
    plan, measuring = same[0]
    choices = plan.cell.choices
    facts = Facts(
        key=f"suite.{measuring.suite.name}",
        model=plan.identity.model,
        data_dir=choices.data,
    )
    samples = measuring.suite.samples(measuring.config, facts)
    if not samples:
        return
    schemes = {each.identity.scheme for each, _ in same}
    known = measured(plan, measuring.suite.name, settings, schemes)
    for sample in samples:
        count = known.counts.get((sample.task, sample.metric), sample.count)
        yield f"{sample.task}: {said_of(sample, count, known)}"


def said_of(sample: Sample, count: int | None, known: Measured) -> str:
    """The sentence on one figure.

    count  units that it will be measured on; None: not known before it has been measured once.
    """
    from harness.paired.power import detectable_loss, detectable_shift

    if count is None:
        return (
            f"how many {sample.unit} there are is known once the task or text has been read, so "
            "what they can show is not known yet"
        )
    key = (sample.task, sample.metric)
    begin = f"with {count} {sample.unit}"
    if sample.share:
        rates = known.discordance.get(key, ())
        rate = statistics.median(rates) if rates else ASSUMED_DISCORDANCE
        loss = detectable_loss(count, rate)
        why = (
            f"{100 * rate:.1f} % of answers change, {_rows(rates)}"
            if rates
            else f"assumed: {100 * rate:.0f} % of answers change; no row of this model has been "
            "measured here"
        )
        if loss is None:
            return f"{begin} no loss of accuracy can be seen; use more"
        return f"{begin} a loss under {100 * loss:.1f} points cannot be seen ({why})"
    spreads = known.spread.get(key, ())
    if not spreads:
        return (
            f"{begin}, what can be seen is known once this model has been measured on them in full "
            "precision and quantized"
        )
    shift = detectable_shift(count, statistics.median(spreads))
    if shift is None:
        return f"{begin} no rise of {sample.metric} can be seen; use more"
    rise = 100 * math.expm1(shift)
    return (
        f"{begin} a rise of {sample.metric} under {rise:.2g} % cannot be seen (by the spread of "
        f"paired differences, {_rows(spreads)})"
    )


def _rows(values: Sequence[float]) -> str:
    if len(values) == 1:
        return "in one row of this model here"
    return f"the median of {len(values)} rows of this model here"


def measured(
    plan: CellPlan | PendingPlan, suite: str, settings: Any, schemes: Iterable[str]
) -> Measured:
    """What the store knows of a suite on the model of a plan.

    settings  those of the suite in records; only records with the same ones say how many units.
    schemes   rows of these count where there are any, else all rows.
    """
    if isinstance(plan, PendingPlan):
        return Measured()
    model, results = plan.identity.model, plan.cell.choices.results
    fingerprint = plan.cell.model.fingerprint
    records = [each for each in _records(results, model, suite) if _is_of(each, fingerprint)]
    counts = {
        key: items.count
        for record in records
        if record.config.get("suite", {}).get(suite) == settings
        for key, items in _figures(record).items()
    }
    full = [_figures(each) for each in records if each.cell.full_precision]
    others = [each for each in records if not each.cell.full_precision]
    others = [each for each in others if each.cell.scheme in set(schemes)] or others
    discordance: dict[tuple[str, str], list[float]] = {}
    spread: dict[tuple[str, str], list[float]] = {}
    for record in others:
        for key, items in _figures(record).items():
            _add(key, items, full, discordance, spread)
    return Measured(counts, discordance, spread)


def _add(
    key: tuple[str, str],
    items: Items,
    full: Sequence[Figures],
    discordance: dict[tuple[str, str], list[float]],
    spread: dict[tuple[str, str], list[float]],
) -> None:
    """Add what one figure of a row has from full precision on the same units, if there is that."""
    from harness.paired.comparison import paired_changes, same_units

    for figures in full:
        if key in figures and same_units([figures[key]], [items]):
            changed, deviation = paired_changes(figures[key], items)
            if changed is not None:
                discordance.setdefault(key, []).append(changed)
            if deviation is not None:
                spread.setdefault(key, []).append(deviation)
            return


def _records(results: Path, model: str, suite: str) -> Iterator[Record]:
    """Records of a suite in the folders of a model: full precision first, MOST_READ at most."""
    pattern = f"{escape(file_name(model))}-*/{suite}-*.json"
    paths = sorted((results / "cells").glob(pattern))
    full = [path for path in paths if path.parent.name.startswith(f"{file_name(model)}-none-")]
    rest = [path for path in paths if path not in set(full)]
    for path in [*full, *rest][:MOST_READ]:
        try:
            yield read_record(path)
        except StoreError:
            continue  # the plan of its cell reports it


def _is_of(record: Record, fingerprint: str) -> bool:
    return record.status == "ok" and record.inputs.get("model") == fingerprint


def _figures(record: Record) -> Figures:
    kept: Iterable[Metric] = record.metrics
    return {(each.task, each.name): each.items for each in kept if each.items is not None}
