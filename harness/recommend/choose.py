"""Choose among cells: who keeps to the limits, who is best, and who is shown to be worse.

Pure functions of rows. The best figures win. Of the cells that no test of perplexity or accuracy
shows to be worse than the best, the smallest is recommended, and of equally small ones the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from harness.paired import comparison
from harness.paired.comparison import Comparison, same_units
from harness.recommend.limits import CRITERIA, KLD, RATIO, Criterion, Limits, Measured, measured
from harness.records.record import QUANTIZATION, Items
from harness.report.columns import Shown, SuiteTable
from harness.report.compare import Sample, other_sample, usual_sample
from harness.report.pareto import cost_axes, quality_columns, serving_in
from harness.report.rows import FigureKey, Row
from harness.report.serving import Serving
from harness.report.table import significant

GB = 1e9
QUALITY, MEMORY, SPEED = "quality", "memory", "speed"
COSTS = "latency"  # the suite that measures time, and what serving memory is made of


@dataclass(frozen=True)
class Candidate:
    """A cell with what decides about it.

    memory    bytes of serving at the context; None: unknown.
    time      milliseconds a token; None: not measured.
    figures   by name of the criterion, one a task.
    lacking   suites that are needed and were not run on it.
    reasons   why it does not keep to the limits: too big, too far, failed.
    remarks   limits that it keeps to by its figure, but not with the whole interval of it.
    """

    row: Row
    serving: Serving | None
    memory: float | None
    time: float | None
    figures: Mapping[str, list[Measured]]
    lacking: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As tables name it."""
        return f"{self.row.name} {self.row.scheme_label}"

    @property
    def fits(self) -> bool:
        """Whether it is known to keep to all limits."""
        return not self.lacking and not self.reasons


@dataclass(frozen=True)
class Evidence:
    """A figure of a cell compared with the same of the best cell: cell - best.

    worse  the sign of the difference is that of a worse figure.
    """

    key: FigureKey
    unit: str
    result: Comparison
    worse: bool


@dataclass(frozen=True)
class Choice:
    """The answer.

    best         index of the cell with the best figures among those that keep to the limits.
    recommended  index of the cell to use; None: none keeps to them.
    ranked_by    the criterion that orders cells.
    evidence     by index, of every other cell that keeps to them, against the best.
    tested       number of comparisons that Holm's correction counts.
    """

    candidates: list[Candidate]
    ranked_by: Criterion
    best: int | None = None
    recommended: int | None = None
    evidence: Mapping[int, list[Evidence]] = field(default_factory=dict)
    tested: int = 0

    def as_good(self, index: int) -> bool:
        """Whether tests were made, and none shows the cell to be worse than the best."""
        found = [each for each in self.evidence.get(index, []) if each.result.p is not None]
        worse = any(each.worse and each.result.significant for each in found)
        return index == self.best or (bool(found) and not worse)


def ranking(
    rows: Sequence[Row], declared: Mapping[str, SuiteTable], limits: Limits
) -> Criterion | None:
    """The criterion that orders cells: the first that is limited, else that has any figure."""
    shown = quality_columns(rows, declared)
    asked = [each for each in CRITERIA if each.limit(limits) is not None]
    known = [each for each in CRITERIA if each.keys(shown, rows)]
    return next(iter([*asked, *known]), None)


def candidates(
    rows: Sequence[Row],
    declared: Mapping[str, SuiteTable],
    limits: Limits,
    context: int,
    ranked_by: Criterion,
    prefer: str = QUALITY,
) -> list[Candidate]:
    """Every row of one model, held against the limits."""
    shown = quality_columns(rows, declared)
    times = [axis for axis in cost_axes(rows, declared) if axis.name == "ms"]
    usual = {
        key: usual_sample(rows, key)
        for each in CRITERIA
        for key in each.tasks(shown, rows)
        if any(key in row.figures for row in rows)
    }
    found = []
    for row in rows:
        serving = serving_in(declared, row)
        made = Candidate(
            row=row,
            serving=serving,
            memory=None if serving is None else serving.total(context),
            time=next((value for axis in times if (value := axis.value(row)) is not None), None),
            figures={each.name: measured(each, row, rows, shown) for each in CRITERIA},
        )
        found.append(_judged(made, rows, shown, usual, limits, ranked_by, prefer))
    return found


def _judged(
    found: Candidate,
    rows: Sequence[Row],
    shown: Sequence[Shown],
    usual: Mapping[FigureKey, Sample],
    limits: Limits,
    ranked_by: Criterion,
    prefer: str,
) -> Candidate:
    lacking: list[str] = []
    reasons: list[str] = []
    remarks: list[str] = []
    if found.memory is None:
        lacking += [COSTS] * (limits.max_gb is not None or prefer == MEMORY)
    elif limits.max_gb is not None and found.memory > limits.max_gb * GB:
        reasons.append(f"too big: {bytes_text(found.memory)} > {bytes_text(limits.max_gb * GB)}")
    if found.time is None and prefer == SPEED:
        lacking.append(COSTS)
    for each in CRITERIA:
        limit = each.limit(limits)
        if limit is None and each is not ranked_by:
            continue
        have = found.figures[each.name]
        tasks = set(each.tasks(shown, rows).values())
        if not have or tasks - {one.task for one in have}:
            lacking.append(each.suite)
        reasons += _elsewhere(each, found.row, rows, shown, usual)
        if limit is not None and have:
            far = [one for one in have if each.breaks(one.value, limit)]
            reasons += [_too_far(each, far, len(have), limit)] if far else []
            remarks += [_unsure(each, one, limit) for one in have if _reaches(each, one, limit)]
    failures = [stage for stage in (QUANTIZATION, *lacking) if stage in found.row.failures]
    if failures:
        reasons.append(f"failed: {', '.join(dict.fromkeys(failures))}")
        lacking = []
    return replace(
        found,
        lacking=tuple(dict.fromkeys(lacking)),
        reasons=tuple(reasons),
        remarks=tuple(remarks),
    )


def _elsewhere(
    criterion: Criterion,
    row: Row,
    rows: Sequence[Row],
    shown: Sequence[Shown],
    usual: Mapping[FigureKey, Sample],
) -> list[str]:
    """Figures that are on another sample than most rows', so that they order nothing."""
    return [
        f"other sample: {criterion.name} of {task} is {text}"
        for key, task in criterion.tasks(shown, rows).items()
        if key in row.figures
        for text in other_sample(row.figures[key], usual[key])
    ]


def _too_far(criterion: Criterion, far: Sequence[Measured], count: int, limit: float) -> str:
    worst, sign = criterion.worst(far), "<" if criterion.lowest else ">"
    others = f" (and {len(far) - 1} more of {count} figures)" * (len(far) > 1)
    return (
        f"too far: {criterion.name} of {worst.task} {criterion.text(worst.value)} {sign} "
        f"{criterion.limit_text(limit)}{others}"
    )


def _reaches(criterion: Criterion, found: Measured, limit: float) -> bool:
    """Whether a figure keeps to a limit that the end of its interval breaks."""
    end = found.low if criterion.lowest else found.high
    return (
        end is not None
        and criterion.breaks(end, limit)
        and not criterion.breaks(found.value, limit)
    )


def _unsure(criterion: Criterion, found: Measured, limit: float) -> str:
    end = found.low if criterion.lowest else found.high
    assert end is not None
    return (
        f"{criterion.name} of {found.task} keeps to {criterion.limit_text(limit)}, but its "
        f"interval reaches {criterion.text(end)}"
    )


def choose(
    found: Sequence[Candidate],
    ranked_by: Criterion,
    keys: Sequence[FigureKey],
    prefer: str = QUALITY,
) -> Choice:
    """Choose among candidates, whose rows are of one model.

    keys    figures that say how good a row is, which tests compare.
    prefer  of the cells that keep to the limits: QUALITY the smallest that is as good as the best,
            MEMORY the smallest, SPEED the fastest.
    """
    indices = [index for index, each in enumerate(found) if each.fits]
    choice = Choice(list(found), ranked_by)
    if not indices:
        return choice
    size = _size(found, indices)
    rank = {index: _rank(ranked_by, found[index].figures[ranked_by.name]) for index in indices}
    speed = {index: math.inf if (time := found[index].time) is None else time for index in indices}
    best = min(indices, key=lambda index: (rank[index], size[index], speed[index]))
    others = [index for index in indices if index != best]
    evidence, tested = _evidence([each.row for each in found], best, others, keys)
    choice = replace(choice, best=best, evidence=evidence, tested=tested)
    orders: Mapping[str, Callable[[int], tuple[float, ...]]] = {
        QUALITY: lambda index: (size[index], speed[index], rank[index]),
        MEMORY: lambda index: (size[index], rank[index], speed[index]),
        SPEED: lambda index: (speed[index], rank[index], size[index]),
    }
    allowed = [index for index in indices if prefer != QUALITY or choice.as_good(index)]
    return replace(choice, recommended=min(allowed, key=orders[prefer]))


def _size(found: Sequence[Candidate], indices: Sequence[int]) -> dict[int, float]:
    """Serving memory or, where that of a cell is unknown, bits per weight."""
    memory = {index: found[index].memory for index in indices}
    if None in memory.values():
        return {index: found[index].row.bits_per_weight or math.inf for index in indices}
    return {index: each for index, each in memory.items() if each is not None}


def _rank(criterion: Criterion, found: Sequence[Measured]) -> float:
    """Lower is better: the mean over tasks, of ratios in logarithms."""
    if criterion is RATIO:
        return fmean(math.log(each.value) for each in found)
    mean = fmean(each.value for each in found)
    return -mean if criterion.lowest else mean


def _evidence(
    rows: Sequence[Row], best: int, others: Sequence[int], keys: Sequence[FigureKey]
) -> tuple[dict[int, list[Evidence]], int]:
    """Comparisons with the best cell, adjusted over all of them; of KL where there is no other."""
    made: dict[tuple[int, FigureKey], Comparison] = {}
    for key in keys:
        mine = rows[best].figures[key].items if key in rows[best].figures else ()
        alike = [index for index in others if mine and _same(mine, rows[index], key)]
        if not alike:
            continue
        results = comparison.compare(mine, [rows[index].figures[key].items for index in alike])
        made |= {(index, key): each for index, each in zip(alike, results, strict=True)}
    units = {key: rows[index].figures[key].unit for index, key in made}
    plain = {place: each for place, each in made.items() if units[place[1]] != KLD.unit} or made
    corrected = comparison.adjusted(list(plain.values()))
    evidence: dict[int, list[Evidence]] = {}
    for (index, key), result in zip(plain, corrected, strict=True):
        higher = rows[index].figures[key].higher_is_better
        worse = result.difference < 0 if higher else result.difference > 0
        evidence.setdefault(index, []).append(Evidence(key, units[key], result, worse))
    return evidence, sum(result.p is not None for result in corrected)


def _same(items: Sequence[Items], row: Row, key: FigureKey) -> bool:
    """Whether a row has the figure on the same windows or documents."""
    figure = row.figures.get(key)
    return figure is not None and bool(figure.items) and same_units(items, figure.items)


def bytes_text(value: float) -> str:
    """ "5.09 MB", "7.31 GB"."""
    return f"{significant(value / GB)} GB" if value >= GB else f"{significant(value / 1e6)} MB"
