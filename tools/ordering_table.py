"""The README's table of the paper's order on a real model: experiment=real/smollm2_ordering.

A line for each statement: GPTQ below RTN, groups below rows, act-order below the natural order. The
loss of either side is the mean negative log-likelihood a token, their difference is taken seed by
seed (RTN has one result, which stands for every seed), and the interval is Student's over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from harness.records.record import FULL_PRECISION, Record
from harness.report.table import Cell, Column, Note, Table

EXPERIMENT = "real/smollm2_ordering"
NAME = "ordering"
TO_RUN = f"To run: `bitsweep run experiment={EXPERIMENT}`."
LEVEL = 0.95


@dataclass(frozen=True)
class Recipe:
    """Cells that differ in their seed alone."""

    method: str
    scheme: str
    act_order: bool = False

    def __str__(self) -> str:
        name = {"rtn": "RTN", "gptq": "GPTQ"}[self.method]
        return f"{name}{' act-order' * self.act_order} {self.scheme}"


RTN, GPTQ = Recipe("rtn", "w3"), Recipe("gptq", "w3")
RTN_GROUPS, GPTQ_GROUPS = Recipe("rtn", "w3g64"), Recipe("gptq", "w3g64")
STATEMENTS = (
    (GPTQ, RTN),
    (GPTQ_GROUPS, RTN_GROUPS),
    (GPTQ_GROUPS, GPTQ),
    (Recipe("gptq", "w3", act_order=True), GPTQ),
    (Recipe("gptq", "w3g64", act_order=True), GPTQ_GROUPS),
)


@dataclass(frozen=True)
class Difference:
    """The loss of one recipe minus that of another, nats a token: mean and interval over seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        if self.high < 0:
            return "as in the paper"
        return "the other way" if self.low > 0 else "not shown"


def difference(one: dict[int, float], other: dict[int, float]) -> Difference | None:
    """Compare losses by seed; a recipe of one seed stands for all. None below two seeds."""
    if len(other) == 1:
        other = dict.fromkeys(one, *other.values())
    found = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if len(found) < 2:
        return None
    mean, error = statistics.mean(found), statistics.stdev(found) / math.sqrt(len(found))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1)) * error
    return Difference(mean, mean - half, mean + half, len(found))


def losses(records: Sequence[Record]) -> dict[Recipe, dict[int, float]]:
    """Nats a token of every recipe by seed, without full precision."""
    found: dict[Recipe, dict[int, float]] = {}
    for record in records:
        for metric in record.metrics:
            if metric.name == "nll" and record.cell.method != FULL_PRECISION:
                ordered = bool(record.config["method"].get("act_order"))
                recipe = Recipe(record.cell.method, record.cell.scheme, ordered)
                found.setdefault(recipe, {})[record.cell.seed] = metric.value
    return found


def ordering_table(records: Sequence[Record]) -> Table:
    """The table; a statement whose cells have not been run is "to run"."""
    held = losses(records)
    columns = [
        Column("below", "below", numeric=False),
        Column("above", "above", numeric=False),
        Column("below_ppl", "ppl", "mean"),
        Column("above_ppl", "ppl", "mean"),
        Column("difference", "difference", "nat a token"),
        Column("interval", "95 % interval", "over seeds"),
        Column("verdict", "verdict", numeric=False),
    ]
    lines = []
    for one, other in STATEMENTS:
        found = difference(held.get(one, {}), held.get(other, {}))
        names = [Cell(str(one), str(one)), Cell(str(other), str(other))]
        if found is None:
            lines.append([*names, *[Cell("to run")] * 5])
            continue
        means = [_perplexity(held[each]) for each in (one, other)]
        interval = f"[{found.low:.3f}, {found.high:.3f}]"
        lines.append(
            [
                *names,
                *(Cell(f"{each:.1f}", each) for each in means),
                Cell(f"{found.mean:.3f}", found.mean),
                Cell(interval, interval),
                Cell(found.verdict, found.verdict),
            ]
        )
    model = next((record.cell.model for record in records), "")
    seeds = max((len(each) for each in held.values()), default=0)
    notes = [
        Note(
            f"The same windows of WikiText-2's test text in every cell; {seeds} calibration seeds. "
            "Differences of the mean loss, seed by seed; Student's interval of 95 % over seeds. "
            "ppl: exp of the mean loss over seeds. Act-order is method=gptq_actorder, with static "
            "groups and in true-sequential order, as the authors' README has it for LLaMA."
        )
    ]
    return Table(NAME, model, f"The paper's order at 3 bits: {model}", columns, lines, notes)


def _perplexity(by_seed: dict[int, float]) -> float:
    return math.exp(statistics.mean(by_seed.values()))
