"""Kullback-Leibler divergence from full precision, and of the kernel from the stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from harness.data.config import DocumentsConfig
from harness.report.columns import FigureColumn, Place, Shown, SuiteTable
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Note, measured, small
from harness.suites import perplexity, reading
from harness.suites.base import Suite, SuiteContext, SuiteResult

if TYPE_CHECKING:
    from harness.config.schema import ModelConfig


@dataclass
class Config:
    """The texts whose windows are compared; files of suite=perplexity are used here too."""

    protocols: list[str] = MISSING  # names known to harness/data/protocols.py
    paths: dict[str, str] = field(default_factory=dict)  # protocol name -> local file or folder
    max_windows: int | None = None
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)


def complete(config: Config, _model: ModelConfig, others: Sequence[Any]) -> Config:
    """Take files, with their document ranges, from the perplexity suite for texts without one."""
    beside = next((each for each in others if isinstance(each, perplexity.Config)), None)
    found = {} if beside is None else beside.paths
    taken = {n: p for n, p in found.items() if n in config.protocols and n not in config.paths}
    if beside is None or not taken:
        return config
    ours = config.documents if config.documents != DocumentsConfig() else beside.documents
    return replace(config, paths={**config.paths, **taken}, documents=ours)


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """Measure the divergences on each protocol, and of every window."""
    from harness.suites import comparing

    return comparing.run(context, config)


def mean_cell(figure: Figure) -> Cell:
    text = small(figure.value) + (f" ± {small(figure.stderr, 1)}" if figure.stderr else "")
    return Cell(text, figure.value, figure.stderr, figure.low, figure.high)


def _median(figure: Figure) -> Cell:
    return Cell() if figure.median is None else Cell(small(figure.median), figure.median)


def _p99(figure: Figure) -> Cell:
    return Cell() if figure.p99 is None else Cell(small(figure.p99), figure.p99)


def _small(figure: Figure) -> Cell:
    return Cell(small(figure.value), figure.value)


def rate_cell(figure: Figure) -> Cell:
    error = None if figure.stderr is None else 100 * figure.stderr
    return Cell(measured(100 * figure.value, error, 1, 2), figure.value, figure.stderr)


def _agreement(figure: Figure) -> Cell:
    return Cell(f"{100 * figure.value:.2f}", figure.value, figure.stderr)


def _none_of_itself(row: Row, _key: FigureKey) -> str | None:
    """A full-precision row has no baseline but itself: empty, not failed."""
    return "" if row.full_precision else None


def _broken_parity(row: Row, key: FigureKey, _rows: Sequence[Row]) -> list[str]:
    parity = row.figures[key].note("parity")
    return [f"parity {parity}: do not trust this kernel"] if parity.startswith("BROKEN") else []


def _notes(rows: Sequence[Row], shown: Sequence[Shown]) -> list[Note]:
    figures = {key: figure for row in rows for key, figure in row.figures.items()}
    said = []
    for suite, task in dict.fromkeys(each.key[:2] for each in shown):
        keys: list[FigureKey] = [(suite, task, name) for name in ("kernel_kl", "kl_floor")]
        figure = next((figures[key] for key in keys if key in figures), None)
        if figure is None:
            continue
        text = f"{task}: {figure.note('windows')} windows, {figure.n} positions"
        if keys[0] in figures:
            text += f"; KL kernel is of {figure.note('of')}, bound {figure.note('bound')}"
        said.append(Note(text + "."))
    agree, floor = (
        tuple(each.column.name for each in shown if each.key[2] == name)
        for name in ("kernel_top1_agreement", "kl_floor")
    )
    return [
        Note(
            "KL in nats a position, in float64; flips: positions whose most likely token is "
            "another than in full precision. ± is one standard error over windows."
        ),
        Note(
            "Agree: positions where kernel and dequantized weights have one most likely token.",
            agree,
        ),
        Note("Floor: KL of a window alone from the same window beside itself in a batch.", floor),
        *said,
    ]


_column = partial(FigureColumn, absent=_none_of_itself, optional=True)

TABLE = SuiteTable(
    columns=(
        _column("kl_divergence", "KL full‖quant.", "nat, mean", write=mean_cell, quality=True),
        _column("kl_divergence", "median", write=_median, name="kl_divergence_median"),
        _column("kl_divergence", "p99", write=_p99, name="kl_divergence_p99"),
        _column("top1_flip_rate", "flips", "%", write=rate_cell),
        _column("kernel_kl", "KL kernel", "nat, mean", write=_small, footnotes=_broken_parity),
        _column("kernel_kl_max", "max", write=_small),
        _column("kernel_top1_agreement", "agree", "%", write=_agreement, on_screen=False),
        _column("kl_floor", "floor", "nat", write=_small, on_screen=False),
    ),
    joins=Place("divergence", "Divergence of {model}", 20),
    every_column=True,
    notes=_notes,
)

SUITE = Suite(
    name="divergence",
    version=1,
    config=Config,
    run=run,
    complete=complete,
    check=reading.check,
    inputs=reading.inputs,
    semantics=reading.semantics,
    preload=("harness.suites.comparing",),
    table=TABLE,
)
