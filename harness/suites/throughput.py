"""Throughput: batches of sequences, and concurrent requests, through the harness's own loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.errors import ConfigError
from harness.report.columns import OwnTable, Place, SuiteTable
from harness.report.names import Footnotes, busy_footnote, name_cells, name_columns
from harness.report.rows import Figure, Row
from harness.report.table import Cell, Column, Note, Table, significant
from harness.suites.base import (
    Facts,
    Suite,
    SuiteContext,
    SuiteResult,
    at_least_one,
    machine_inputs,
)
from harness.suites.latency import spread_footnotes

NAME = "throughput"
PLACE = Place(NAME, "Throughput of {model}", 35)


@dataclass
class Config:
    """Lengths of prompts and answers, and how many sequences there are at once.

    repeats  of every batch, after one that is not timed.
    rounds   requests that each of the concurrent places serves, one after the other.
    """

    prompt_tokens: int = 128
    decode_tokens: int = 32
    batches: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    requests: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    repeats: int = 3
    rounds: int = 2


def check(config: Config, facts: Facts) -> None:
    """ConfigError for a number that is too small, a load twice, or a context that is too short."""
    for name in ("prompt_tokens", "decode_tokens", "repeats", "rounds"):
        at_least_one(f"{facts.key}.{name}", getattr(config, name))
    for name in ("batches", "requests"):
        found = getattr(config, name)
        for each in found:
            at_least_one(f"{facts.key}.{name}", each)
        if len(set(found)) < len(found):
            raise ConfigError(f"{facts.key}.{name}={found} names a load twice: name each once.")
    if not config.batches and not config.requests:
        raise ConfigError(f"{facts.key} has neither batches nor requests: name some of either.")
    context = (facts.shape or {}).get("max_position_embeddings")
    needed = config.prompt_tokens + config.decode_tokens
    if isinstance(context, int) and needed > context:
        raise ConfigError(
            f"{facts.key} needs {needed} tokens (prompt_tokens={config.prompt_tokens} + "
            f"decode_tokens={config.decode_tokens}), but model={facts.model} has a context of "
            f"{context}: make one of the two smaller."
        )


def positions(config: Config) -> int:
    """Tokens in the cache at most, of all sequences together."""
    together = max([*config.batches, *config.requests])
    return together * (config.prompt_tokens + config.decode_tokens)


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """Tokens a second, and times to the first token and to each later one, of every load."""
    from harness.suites import timing_loads

    return timing_loads.run(context, config)


def table(model: str, rows: list[Row]) -> Table | None:
    """A line for every row and load."""
    shown = [row for row in rows if any(key[0] == NAME for key in row.figures)]
    if not shown:
        return None
    footnotes, cells = Footnotes(), []
    busy = busy_footnote(NAME, shown)
    for row in shown:
        for task in sorted({key[1] for key in row.figures if key[0] == NAME}, key=_kind):
            found = {key[2]: each for key, each in row.figures.items() if key[:2] == (NAME, task)}
            said = [busy] * any(each.busy for each in found.values())
            said += spread_footnotes(next(iter(found.values())))
            missing = next(iter(found.values())).note("not measured")
            said += [f"not measured: {missing}"] if missing else []
            marks = tuple(footnotes.mark(text) for text in said)
            kind, count = _kind(task)
            cells.append(
                [
                    *name_cells(row, shown, footnotes),
                    Cell(kind, kind, marks=marks),
                    Cell(str(count), float(count)),
                    _cell(found.get("tokens_per_s")),
                    *(_cell(found.get(f"{name}_{suffix}"))
                      for name in ("first_token", "token") for suffix in ("ms", "p95_ms")),
                ]
            )  # fmt: skip
    columns = [
        *name_columns(shown),
        Column("load", "load", numeric=False),
        Column("at_once", "at once"),
        Column("tokens_per_s", "tokens", "/s"),
        Column("first_token_ms", "first token", "ms"),
        Column("first_token_p95_ms", "first token", "p95"),
        Column("token_ms", "later token", "ms"),
        Column("token_p95_ms", "later token", "p95"),
    ]
    notes = [
        Note(
            "The harness's own loop around the model, no serving engine. Batch: sequences of one "
            "length from the first to the last token together. Requests: each joins when a place "
            "is free and its prompt was read alone, and waits while others' prompts are read; "
            "prompts and answers have half of the length to all of it. Medians and 95th "
            "percentiles; tokens of all sequences a second."
        )
    ]
    title = PLACE.title.replace("{model}", model)
    return Table(NAME, model, title, columns, cells, notes, footnotes.texts)


def _kind(task: str) -> tuple[str, int]:
    """ "batch", 4 of "batch4"."""
    kind = task.rstrip("0123456789")
    return kind, int(task.removeprefix(kind))


def _cell(figure: Figure | None) -> Cell:
    return Cell() if figure is None else Cell(significant(figure.value), figure.value)


SUITE = Suite(
    name=NAME,
    version=1,
    config=Config,
    run=run,
    check=check,
    inputs=machine_inputs,
    timing=True,
    preload=("harness.suites.timing_loads",),
    positions=positions,
    table=SuiteTable(tables=(OwnTable(PLACE, table),)),
)
