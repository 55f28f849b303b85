"""Compare the figures of a column: the best of a bit width, and figures on another sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from harness.report.columns import Shown
from harness.report.names import calibrations, several_seeds
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Note

Sample = tuple[int, str | None]  # number of observations, hash of the tokens


def best_figures(rows: Sequence[Row], shown: Sequence[Shown]) -> set[tuple[int, FigureKey]]:
    """(row, key) of the best figure of each bit width whose figures differ."""
    best = set()
    for key in [each.key for each in shown]:
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


def other_sample(figure: Figure, usual: Sample) -> list[str]:
    """A footnote for a figure on another sample than most of its column."""
    if _sample(figure) == usual:
        return []
    return [f"on {figure.n} {figure.n_unit} that are not those of the column: do not compare"]


def compared_notes(
    rows: Sequence[Row],
    shown: Sequence[Shown],
    best: set[tuple[int, FigureKey]],
    usual: Mapping[FigureKey, Sample],
) -> list[Note]:
    """Notes on the samples, the meaning of ± and bold, and the calibration.

    usual  usual_sample of every figure.
    """
    notes = []
    measured_on: dict[str, list[str]] = {}
    for each in shown:
        unit = _figures(rows, each.key)[0].n_unit
        count, _ = usual[each.key]
        measured_on.setdefault(f"{count} {unit}", []).append(each.key[1])
    if shown:
        counts = "; ".join(
            f"{', '.join(dict.fromkeys(tasks))}: {count}" for count, tasks in measured_on.items()
        )
        notes.append(Note(f"Measured on {counts}."))
    uncertain = [
        each for each in shown if any(f.stderr is not None for f in _figures(rows, each.key))
    ]
    if uncertain:
        text = (
            "± is one standard error over the text. All rows see the same text, so the differences "
            "between rows are surer than ± suggests."
        )
        notes.append(Note(text, _names(uncertain)))
    if several_seeds(rows):
        notes.append(Note("Several seeds: their mean and, in brackets, their standard deviation."))
    if best:
        bold = [each for each in shown if any(each.key == key for _, key in best)]
        notes.append(Note("Bold: best of its bit width.", _names(bold)))
    if len(calibrations(rows)) == 1:
        notes.append(Note(f"Calibrated on {calibrations(rows)[0]}."))
    return notes


def _sample(figure: Figure) -> Sample:
    return figure.n, figure.token_hash


def usual_sample(rows: Sequence[Row], key: FigureKey) -> Sample:
    """The sample of most of a column."""
    samples = Counter(_sample(figure) for figure in _figures(rows, key))
    return max(samples, key=lambda sample: (samples[sample], sample[0], sample[1] or ""))


def _figures(rows: Sequence[Row], key: FigureKey) -> list[Figure]:
    return [row.figures[key] for row in rows if key in row.figures]


def _names(shown: Sequence[Shown]) -> tuple[str, ...]:
    return tuple(each.column.name for each in shown)
