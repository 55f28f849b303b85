"""The accuracy table: perplexity and zero-shot accuracy of every scheme and method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.report.names import (
    Footnotes,
    calibrations,
    failed_seeds,
    missing,
    name_cells,
    name_columns,
    several_seeds,
)
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Column, Note, Table, measured

SUITES = ("perplexity", "zeroshot")

# The figures that tables show, and how they call them. A zero-shot task that has none of these
# (exact_match, f1, ...) shows what it has.
# target_perplexity is LAMBADA's, of the last word given its passage.
HEADLINES = {
    "perplexity": "ppl",
    "accuracy": "acc.",
    "acc_norm": "norm. acc.",
    "target_perplexity": "target ppl",
}
FILES_ONLY = ("target_perplexity",)  # accuracy on the same words is what papers print


@dataclass(frozen=True)
class Writing:
    """How the figures of a column are written: name and unit, factor, decimals."""

    name: str
    factor: float
    least: int
    most: int

    def __call__(self, value: float, stderr: float | None = None) -> str:
        scaled = None if stderr is None else self.factor * stderr
        return measured(self.factor * value, scaled, self.least, self.most)


def writing(key: FigureKey, rows: list[Row]) -> Writing:
    """Fractions as per cent with one decimal, everything else by its standard error."""
    figure = next(row.figures[key] for row in rows if key in row.figures)
    name, arrow = HEADLINES.get(key[2], key[2]), "↑" if figure.higher_is_better else "↓"
    if figure.unit == "fraction":
        return Writing(f"{name} % {arrow}", 100.0, 1, 1)
    return Writing(f"{name} {arrow}", 1.0, 2, 6)


def quality_table(model: str, rows: list[Row], notes: list[str]) -> Table | None:
    """The table of one model's rows; None when no accuracy suite was asked for."""
    keys = quality_keys(rows)
    failed = [suite for suite in SUITES if _only_failed(suite, rows, keys)]
    nothing = not any(row.figures for row in rows) and any(row.failures for row in rows)
    if not keys and not failed and not nothing:
        return None
    footnotes = Footnotes()
    columns = [
        *name_columns(rows),
        *(_column(key, rows) for key in keys),
        *(Column(f"{suite}:status", suite) for suite in failed),
    ]
    if nothing and not failed:
        columns.append(Column("status", "status"))
    best = _best(rows, keys)
    usual = {key: _usual_sample(rows, key) for key in keys}
    cells = []
    for index, row in enumerate(rows):
        line = name_cells(row, rows, footnotes)
        for key in keys:
            cell = _cell(row, key, writing(key, rows), usual[key], footnotes)
            line.append(replace(cell, best=(index, key) in best))
        line += [missing(row, suite, footnotes) for suite in failed]
        if nothing and not failed:
            line.append(_any_failure(row, footnotes))
        cells.append(line)
    said = [*_notes(rows, keys, usual, best), *(Note(text) for text in notes)]
    return Table(
        "accuracy",
        model,
        f"Accuracy of {model}",
        columns,
        cells,
        said,
        footnotes.texts,
        footnotes.causes,
    )


def quality_keys(rows: list[Row]) -> list[FigureKey]:
    """Perplexities by protocol, then accuracies by task."""
    found = {key for row in rows for key in row.figures if key[0] in SUITES}
    keys = {key for key in found if key[2] in HEADLINES}
    served = {key[:2] for key in keys}
    keys |= {key for key in found if key[0] == "zeroshot" and key[:2] not in served}
    known = list(HEADLINES)

    def position(key: FigureKey) -> tuple[bool, str, int, str]:
        rank = known.index(key[2]) if key[2] in known else len(known)
        return key[2] != "perplexity", key[1], rank, key[2]

    return sorted(keys, key=position)


def _column(key: FigureKey, rows: list[Row]) -> Column:
    shown = key[2] not in FILES_ONLY
    return Column(_name(key), key[1], writing(key, rows).name, on_screen=shown)


def _only_failed(suite: str, rows: list[Row], keys: list[FigureKey]) -> bool:
    """The suite has no figure in any row, so there is no column to show its failures in."""
    return not any(key[0] == suite for key in keys) and any(suite in row.failures for row in rows)


def _any_failure(row: Row, footnotes: Footnotes) -> Cell:
    stage = min(row.failures, default=None)
    return Cell() if stage is None else missing(row, stage, footnotes)


def _cell(
    row: Row,
    key: FigureKey,
    write: Writing,
    usual: tuple[int, str | None],
    footnotes: Footnotes,
) -> Cell:
    figure = row.figures.get(key)
    if figure is None:
        return missing(row, key[0], footnotes)
    text = write(figure.value, figure.stderr)
    if figure.spread is not None:
        text += f" ({write(figure.spread)})"
    marks = failed_seeds(row, key[0], footnotes)
    if _sample(figure) != usual:
        other = f"on {figure.n} {figure.n_unit} that are not those of the column: do not compare"
        marks += (footnotes.mark(other),)
    return Cell(text, figure.value, figure.stderr, marks=marks)


def _sample(figure: Figure) -> tuple[int, str | None]:
    """What figures must share to be compared: how many observations, of which tokens."""
    return figure.n, figure.token_hash


def _usual_sample(rows: list[Row], key: FigureKey) -> tuple[int, str | None]:
    samples = Counter(_sample(row.figures[key]) for row in rows if key in row.figures)
    return max(samples, key=lambda sample: (samples[sample], sample[0], sample[1] or ""))


def _best(rows: list[Row], keys: list[FigureKey]) -> set[tuple[int, FigureKey]]:
    """(row, key) of the best figure of a bit width, where the figures of that width differ."""
    best = set()
    for key in keys:
        for bits in {row.bits for row in rows}:
            rivals = {
                index: row.figures[key]
                for index, row in enumerate(rows)
                if row.bits == bits and not row.full_precision and key in row.figures
            }
            values = {figure.value for figure in rivals.values()}
            if len(values) < 2:
                continue
            higher = any(figure.higher_is_better for figure in rivals.values())
            winner = max(values) if higher else min(values)
            best |= {(index, key) for index, each in rivals.items() if each.value == winner}
    return best


def _notes(
    rows: list[Row],
    keys: list[FigureKey],
    usual: dict[FigureKey, tuple[int, str | None]],
    best: set[tuple[int, FigureKey]],
) -> list[Note]:
    notes = []
    uncertain = [key for key in keys if any(f.stderr is not None for f in _figures_of(rows, key))]
    measured_on: dict[str, list[str]] = {}
    for key in keys:
        unit = next(_figures_of(rows, key)).n_unit
        measured_on.setdefault(f"{usual[key][0]} {unit}", []).append(key[1])
    if keys:
        counts = "; ".join(
            f"{', '.join(dict.fromkeys(tasks))}: {count}" for count, tasks in measured_on.items()
        )
        notes.append(Note(f"Measured on {counts}."))
    if uncertain:
        text = (
            "± is one standard error over the text. All rows see the same text, so the differences "
            "between rows are surer than ± suggests."
        )
        notes.append(Note(text, _names(uncertain)))
    if several_seeds(rows):
        notes.append(Note("Several seeds: their mean and, in brackets, their standard deviation."))
    if best:
        bold = [key for key in keys if any(key == other for _, other in best)]
        notes.append(Note("Bold: best of its bit width.", _names(bold)))
    if len(calibrations(rows)) == 1:
        notes.append(Note(f"Calibrated on {calibrations(rows)[0]}."))
    return notes


def _figures_of(rows: list[Row], key: FigureKey) -> Iterator[Figure]:
    return (row.figures[key] for row in rows if key in row.figures)


def _names(keys: list[FigureKey]) -> tuple[str, ...]:
    return tuple(_name(key) for key in keys)


def _name(key: FigureKey) -> str:
    """Of the CSV column."""
    return f"{key[1]}:{key[2]}"
