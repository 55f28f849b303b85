"""The verb `bitsweep recommend`: which cell to use under limits, and what says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.recommend.answer import Answer, measuring
from harness.recommend.choose import QUALITY, Candidate, candidates, choose, ranking
from harness.recommend.limits import CRITERIA, Limits
from harness.records.asked import asked_records
from harness.records.record import Record
from harness.report.columns import SuiteTable
from harness.report.frame import from_records, told_apart
from harness.report.pareto import context_of, quality_columns, serving_in
from harness.report.render import to_rich
from harness.report.rows import Row, read_rows
from harness.run.screen import open_console
from harness.suites.find import declared_tables

OK, FAILED = 0, 1


@dataclass(frozen=True)
class Asked:
    """The question: a model's cells in a results folder, under limits."""

    results: Path
    limits: Limits
    model: str | None = None
    prefer: str = QUALITY


def recommend(asked: Asked, form: str = "table") -> int:
    """Answer on screen or as JSON; return 0, or 1 if no cell is known to keep to the limits.

    Raises ConfigError if there are no records, or if no cell has figures of a kind that is needed.
    """
    records = _records(asked)
    rows = read_rows(from_records(records)).rows
    declared = declared_tables(rows, {})
    context = _context(asked.limits, rows, declared)
    ranked_by = ranking(rows, declared, asked.limits)
    if ranked_by is None:
        raise ConfigError(_no_figures(asked, CRITERIA[0].suite, records, rows[-1]))
    found = candidates(rows, declared, asked.limits, context, ranked_by, asked.prefer)
    _require_measured(asked, found, records)
    keys = [each.key for each in quality_columns(rows, declared)]
    choice = choose(found, ranked_by, keys, asked.prefer)
    answer = Answer(choice, asked.limits, context, asked.prefer, records)
    if form == "json":
        print(json.dumps(answer.entries(), indent=1, ensure_ascii=False))
    else:
        screen = open_console()
        screen.print(to_rich(answer.table(), screen.width))
        for line in answer.sentences():
            screen.print(line, highlight=False, markup=False, soft_wrap=True)
    if choice.recommended is None:
        print(f"bitsweep: {answer.nothing()}", file=sys.stderr)
        return FAILED
    return OK


def _records(asked: Asked) -> list[Record]:
    """The records of the model that is asked for, under the names that tables have."""
    place = asked.results
    records = told_apart(asked_records(place))
    models = sorted({record.cell.model for record in records})
    if asked.model is None and len(models) > 1:
        raise ConfigError(
            f"{place} has {len(models)} models, whose figures are not comparable: choose one with "
            f"--model, of {', '.join(models)}."
        )
    chosen = [each for each in records if asked.model in (None, each.cell.model)]
    if not chosen:
        raise ConfigError(f"{place} has no model {asked.model}: it has {', '.join(models)}.")
    return chosen


def _context(limits: Limits, rows: Sequence[Row], declared: Mapping[str, SuiteTable]) -> int:
    """The tokens that are served; ConfigError for more than the model takes."""
    servings = [serving_in(declared, row) for row in rows]
    if limits.context is None:
        return context_of(servings)
    longest = min((each.positions for each in servings if each and each.positions), default=None)
    if longest is not None and limits.context > longest:
        raise ConfigError(
            f"--context {limits.context} is longer than {rows[0].model} takes: use {longest} or "
            "less."
        )
    return limits.context


def _require_measured(asked: Asked, found: Sequence[Candidate], records: list[Record]) -> None:
    """Raise ConfigError if a suite that is needed has figures of no cell."""
    for suite in dict.fromkeys(suite for each in found for suite in each.lacking):
        without = [suite in each.lacking or bool(each.row.failures) for each in found]
        if all(without):
            example = next(each for each in reversed(found) if suite in each.lacking)
            raise ConfigError(_no_figures(asked, suite, records, example.row))


def _no_figures(asked: Asked, suite: str, records: Sequence[Record], row: Row) -> str:
    return (
        f"{asked.results} has no figures of suite={suite}, which this question needs: run it on "
        f"every cell, as in `{measuring(records, row, (suite,))}`."
    )
