"""Kullback-Leibler divergence from full precision, and of the kernel from the stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from harness.data.config import DocumentsConfig
from harness.report.columns import FigureColumn, Place, Shown, SuiteTable
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Note, measured, small
from harness.suites import perplexity, reading
from harness.suites.base import Suite, SuiteContext, SuiteResult
from harness.suites.confidences import CONFIDENCES, confidence_names

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


def _not_measured(row: Row, key: FigureKey) -> str | None:
    """Empty unless the suite failed: full precision has no baseline but itself."""
    return "" if any(suite == key[0] for suite, _, _ in row.figures) else None


def _broken_parity(row: Row, key: FigureKey, _rows: Sequence[Row]) -> list[str]:
    parity = row.figures[key].note("parity")
    return [f"parity {parity}: do not trust this kernel"] if parity.startswith("BROKEN") else []


def _within_noise(row: Row, key: FigureKey, _rows: Sequence[Row]) -> list[str]:
    noise = row.figures.get((*key[:2], "kl_noise"))
    within = noise is not None and row.figures[key].value <= noise.value
    return ["not above the rounding noise of bfloat16"] if within else []


def _compression(task: str, suite: str, rows: Sequence[Row]) -> list[Note]:
    """How the reference was compressed, and by how much of the KL that can move a row at most."""
    shares, said = [], ""
    for row in rows:
        mean = row.figures.get((suite, task, "kl_divergence"))
        error = row.figures.get((suite, task, "kl_sampling"))
        if mean is not None and error is not None and mean.value > 0:
            shares.append(error.value / mean.value)
            said = mean.note("reference")
    if not shares:
        return []
    return [
        Note(
            f"{task}: the reference has {said}; KL has no bias from it, and sampling adds a "
            f"standard error of at most {small(100 * max(shares), 1)} % of a row's KL."
        )
    ]


ABOUT = {
    "kernel_top1_agreement": (
        "Agree: positions where kernel and dequantized weights have one most likely token."
    ),
    "kl_noise": (
        "Noise: KL of full precision from itself with the rounding noise of bfloat16 after every "
        "layer; of a smaller KL nothing can be seen in bfloat16."
    ),
    "kl_floor": "Floor: KL of a window alone from the same window beside itself in a batch.",
}


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
        said += [Note(text + "."), *_compression(task, suite, rows)]
    about = []
    for metric, text in ABOUT.items():
        columns = tuple(each.column.name for each in shown if each.key[2] == metric)
        about += [Note(text, columns)] if columns else []
    return [
        Note(
            "KL in nats a position, in float64; flips: positions whose most likely token is "
            "another than in full precision (100 % less the top-1 agreement). ± is one standard "
            "error over windows."
        ),
        *about,
        *said,
    ]


def _intervals() -> list[tuple[str, str]]:
    """Names of the intervals of confidence, and their headers."""
    spans = [f"{100 * a:.0f}–{100 * b:.0f} %" for a, b in pairwise(CONFIDENCES)]
    return list(zip(confidence_names(), spans, strict=True))


def _confidence_notes(rows: Sequence[Row], shown: Sequence[Shown]) -> list[Note]:
    said = []
    for task in dict.fromkeys(each.key[1] for each in shown):
        found = next(
            {each.key: row.figures[each.key].n for each in shown if each.key in row.figures}
            for row in rows
            if any(each.key in row.figures for each in shown)
        )
        counts = [str(n) for key, n in found.items() if key[1] == task and key[2][:3] == "kl_"]
        said.append(Note(f"{task}: {', '.join(counts)} positions."))
    return [
        Note("Positions by the probability that full precision gives its most likely token."),
        *said,
    ]


_column = partial(FigureColumn, absent=_not_measured, optional=True)

BY_CONFIDENCE = SuiteTable(
    columns=(
        *(_column(f"kl_{name}", text, "KL, nat", write=_small) for name, text in _intervals()),
        *(
            _column(f"flips_{name}", text, "flips, %", write=rate_cell)
            for name, text in _intervals()
        ),
    ),
    joins=Place("divergence_by_confidence", "Divergence of {model} by confidence", 21),
    notes=_confidence_notes,
    fails=False,
)

TABLE = SuiteTable(
    columns=(
        _column(
            "kl_divergence",
            "KL full‖quant.",
            "nat, mean",
            write=mean_cell,
            footnotes=_within_noise,
            quality=True,
        ),
        _column("kl_divergence", "median", write=_median, name="kl_divergence_median"),
        _column("kl_divergence", "p99", write=_p99, name="kl_divergence_p99"),
        _column("kl_divergence_p999", "p99.9", write=_small),
        _column("kl_divergence_max", "max", write=_small),
        _column("top1_flip_rate", "flips", "%", write=rate_cell),
        _column("kl_noise", "noise", "nat, mean", write=_small),
        _column("kernel_kl", "KL kernel", "nat, mean", write=_small, footnotes=_broken_parity),
        _column("kernel_kl_max", "kernel max", write=_small, on_screen=False),
        _column("kernel_top1_agreement", "agree", "%", write=_agreement, on_screen=False),
        _column("kl_floor", "floor", "nat", write=_small, on_screen=False),
        _column("noise_flip_rate", "noise flips", "%", write=rate_cell, on_screen=False),
        _column("kl_sampling", "sampling", "nat", write=_small, on_screen=False),
        _column("kl_certain", "at least", "nat", write=_small, on_screen=False),
    ),
    joins=Place("divergence", "Divergence of {model}", 20),
    notes=_notes,
    further=(BY_CONFIDENCE,),
)

SUITE = Suite(
    name="divergence",
    version=2,
    config=Config,
    run=run,
    complete=complete,
    check=reading.check,
    inputs=reading.inputs,
    semantics=reading.semantics,
    preload=("harness.suites.comparing",),
    table=TABLE,
)
