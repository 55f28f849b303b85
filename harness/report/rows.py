"""Rows of tables and plots: one per model, method and scheme, with seeds combined."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from harness.records.busyness import BUSY
from harness.report.variants import name_entries

if TYPE_CHECKING:
    import pandas as pd

    from harness.records.record import Items

FigureKey = tuple[str, str, str]  # suite, task, metric


@dataclass(frozen=True)
class Figure:
    """One figure of a row; with several seeds, their mean and standard deviation."""

    value: float
    stderr: float | None
    low: float | None  # p10
    high: float | None  # p90
    unit: str
    n: int
    n_unit: str
    token_hash: str | None
    higher_is_better: bool
    kernel: str | None
    notes: str
    seeds: int = 1
    spread: float | None = None
    median: float | None = None
    p99: float | None = None
    busy: tuple[str, ...] = ()  # what others took of the machine in a timing, of any seed
    items: tuple[Items, ...] = ()  # values of its windows or documents, by seed; () if any lacks

    def note(self, name: str) -> str:
        """A note of the metric by name; "" if it has none of that name."""
        return _note(self.notes, name)

    def notes_without(self, names: Sequence[str]) -> str:
        """All notes but some, as one line: "clock: perf_counter_ns, dtype: float32"."""
        return ", ".join(_parts_without(self.notes, names))


@dataclass(frozen=True, eq=False)  # each its own key, so that what is said of rows can be kept
class Row:
    """A model x method x scheme: its figures, failures by suite, and fallbacks."""

    model: str
    method: str
    method_label: str
    full_precision: bool
    variant: str  # options and settings that distinguish rows of one method and scheme
    scheme: str
    dtype: str | None  # of the weights that are not quantized
    calibration: str | None
    bits: float | None
    group_size: float | None
    bits_per_weight: float | None
    seeds: tuple[int, ...]
    figures: dict[FigureKey, Figure] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # suite -> cause
    fallbacks: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()  # those that were not applied to some layers
    coverage: tuple[str, ...] = ()  # matrices of the blocks in full precision
    calibrated_on: str | None = None  # text and windows: "c4-train 128 x 2048"
    head: tuple[str, ...] = ()  # how head and embeddings were quantized
    mixture: tuple[str, ...] = ()  # layers by scheme, if they have several
    parameters: float | None = None  # of the model, about
    made_of: tuple[str, ...] = ()  # the file that the weights came from, as JSON
    weight_errors: tuple[str, ...] = ()  # by layer, as JSON, of every seed
    cells: tuple[str, ...] = ()  # keys of the cells whose figures it has
    recipe: str = ""  # all that made its weights but the seed and the calibration text, as JSON
    recipe_label: str = ""  # the method with what distinguishes recipes of one method and scheme
    text: str | None = None  # its calibration text without the size, as JSON
    text_size: str | None = None  # sequences and length of its calibration, as JSON
    calibration_tokens: float | None = None  # tokens that its layers saw, the mean over seeds
    told_by: str = ""  # its calibration, where that tells rows of one label apart

    @property
    def scheme_label(self) -> str:
        """The scheme; in full precision, the dtype of the weights."""
        return (self.dtype or self.scheme) if self.full_precision else self.scheme

    @cached_property  # asked for at every point of every plot
    def label(self) -> str:
        """The method as tables print it, with its options: "ABC act-order"."""
        return f"{self.method_label} {self.variant}".strip()

    @cached_property
    def name(self) -> str:
        """The label and what else tells its rows apart where no column has the calibration."""
        return f"{self.label} {self.told_by}".strip()

    @property
    def suites(self) -> set[str]:
        """Suites with a figure or a failure, including the quantization."""
        return {suite for suite, _, _ in self.figures} | set(self.failures)


@dataclass(frozen=True)
class Rows:
    """The rows in the order of the tables, with notes on how they were chosen."""

    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True)
class Selection:
    """The entries of a frame that count, each with the name of its variant, and notes on them."""

    entries: list[dict[str, Any]]
    notes: list[str]


def read_rows(frame: pd.DataFrame) -> Rows:
    """Make rows from the frame of frame.from_records: full precision first, then descending bits.

    The newest of repeated figures counts (a note gives the number of older ones), and seeds are
    combined in one row.
    """
    return make_rows(select(frame))


def select(frame: pd.DataFrame) -> Selection:
    """The newest entry of every figure in the frame of frame.from_records."""
    return select_entries(_entries(frame))


def select_entries(entries: list[dict[str, Any]]) -> Selection:
    """The newest entry of every figure, of those of frame.entries_of; it names their variants."""
    name_entries(entries)
    latest, replaced = _latest(entries)
    notes = []
    if replaced:
        notes.append(
            f"{replaced} older {'figure' if replaced == 1 else 'figures'} of the same cells, "
            "measured again since: not shown."
        )
    return Selection(latest, [*notes, *_several_artifacts(latest)])


def make_rows(selection: Selection, by_cell: bool = False) -> Rows:
    """The rows of a selection, in the order of tables.

    by_cell  a row for every cell, so that each seed has its own; otherwise seeds are combined.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in selection.entries:
        cell = (entry["cell_key"],) if by_cell else ()
        groups.setdefault((*entry["row"], *cell), []).append(entry)
    rows = sorted((_row(group) for group in groups.values()), key=_order)
    return Rows(_told_apart(rows), selection.notes)


def _told_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, those of one label with the name of their calibration if they have several."""
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        found.setdefault((row.model, row.label), set()).add(row.calibration or "")
    several = {key for key, names in found.items() if len(names) > 1}
    return [
        replace(row, told_by=row.calibration or "") if (row.model, row.label) in several else row
        for row in rows
    ]


def _several_artifacts(entries: list[dict[str, Any]]) -> list[str]:
    """A sentence for each cell with figures of more than one artifact."""
    found: dict[str, set[str]] = {}
    named: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry["artifact"]:
            key = entry["cell_key"]
            found.setdefault(key, set()).add(entry["artifact"])
            named[key] = entry
    return [
        "{label} {scheme}, seed {seed}: ".format_map(named[key])
        + f"its figures are of {len(artifacts)} artifacts of one key "
        f"({', '.join(sorted(each[:8] for each in artifacts))}), which differ by the machines that "
        "made them: measure them again in one place."
        for key, artifacts in found.items()
        if len(artifacts) > 1
    ]


def _entries(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a frame, None where pandas has NaN; `to_dict` takes some times as long."""
    names = list(frame.columns)
    columns = [frame[name].astype(object).where(frame[name].notna(), None) for name in names]
    return [dict(zip(names, line, strict=True)) for line in zip(*columns, strict=True)]


def _latest(entries: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The newest entry of every figure, and how many older ones there were.

    A failure counts until its suite succeeds on that cell, and hides earlier figures.
    """
    newest_failure: dict[tuple[Any, ...], str] = {}
    newest_success: dict[tuple[Any, ...], str] = {}
    for entry in entries:
        newest = newest_failure if entry["status"] == "failed" else newest_success
        stage = (*entry["row"], entry["seed"], entry["suite"])
        newest[stage] = max(newest.get(stage, ""), entry["started_at"])
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    replaced = 0
    for entry in sorted(entries, key=itemgetter("started_at", "key")):
        stage = (*entry["row"], entry["seed"], entry["suite"])
        failure_counts = newest_failure.get(stage, "") > newest_success.get(stage, "")
        if (entry["status"] == "failed") != failure_counts:
            continue
        figure = (*stage, entry["task"], entry["metric"])
        replaced += figure in chosen and entry["metric"] is not None
        chosen[figure] = entry
    return list(chosen.values()), replaced


def _row(group: list[dict[str, Any]]) -> Row:
    first = group[0]
    figures: dict[FigureKey, list[dict[str, Any]]] = {}
    failures: dict[str, list[str]] = {}
    for entry in group:
        if entry["metric"] is not None:  # also for a suite that failed for some of its tasks
            key = (entry["suite"], entry["task"], entry["metric"])
            figures.setdefault(key, []).append(entry)
        elif entry["status"] == "failed":
            failures.setdefault(entry["suite"], []).append(entry["error"] or "no cause recorded")
    return Row(
        model=first["model"],
        method=first["method"],
        method_label=first["label"],
        full_precision=first["full_precision"],
        variant=first["variant"],
        scheme=first["scheme"],
        dtype=first["dtype"],
        calibration=first["calibration"],
        bits=_known(entry["bits"] for entry in group),
        group_size=_known(entry["group_size"] for entry in group),
        bits_per_weight=_known(entry["bits_per_weight"] for entry in group),
        seeds=tuple(sorted({int(entry["seed"]) for entry in group})),
        figures={key: _combine(entries) for key, entries in sorted(figures.items())},
        failures={suite: "; ".join(sorted(set(errors))) for suite, errors in failures.items()},
        fallbacks=_different(entry["fallbacks"] for entry in group),
        transforms=_different(entry["transforms"] for entry in group),
        coverage=_different(entry["coverage"] for entry in group),
        calibrated_on=first["calibrated_on"],
        head=_different(entry["head"] for entry in group),
        mixture=_different(entry["mixture"] for entry in group),
        parameters=_known(entry["parameters"] for entry in group),
        made_of=_different(entry["made_of"] for entry in group),
        weight_errors=_different(entry["weight_errors"] for entry in group),
        cells=_different(entry["cell_key"] for entry in group),
        recipe=first["recipe"],
        recipe_label=first["recipe_label"],
        text=first["text"],
        text_size=first["text_size"],
        calibration_tokens=_mean_tokens(group),
    )


def _mean_tokens(group: list[dict[str, Any]]) -> float | None:
    """The mean over cells of the calibration tokens, which records of quantizations have."""
    found = {
        entry["cell_key"]: entry["calibration_tokens"]
        for entry in group
        if entry["calibration_tokens"]
    }
    return statistics.fmean(found.values()) if found else None


@lru_cache(maxsize=4096)  # asked for every metric; records say the same again and again
def _note(notes: str, name: str) -> str:
    """A note by name, of notes joined by "; "; "" if there is none of that name."""
    for part in notes.split("; "):
        if part.startswith(f"{name}: "):
            return part.removeprefix(f"{name}: ")
    return ""


def _parts_without(notes: str, names: Sequence[str]) -> list[str]:
    heads = tuple(f"{name}:" for name in names)
    return [part for part in notes.split("; ") if not part.startswith(heads)]


@lru_cache(maxsize=4096)
def _notes_of_figure(notes: str) -> str:
    """The notes but for what others did: no condition of a timing, it differs from row to row."""
    return "; ".join(_parts_without(notes, [BUSY]))


def _different(texts: Iterable[str]) -> tuple[str, ...]:
    found = set(texts)
    return tuple(sorted(filter(None, found))) if found != {""} else ()


def _known(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _combine(entries: list[dict[str, Any]]) -> Figure:
    """Mean over seeds. Seeds share their texts, so the standard error is not reduced."""
    first, alone = entries[0], len(entries) == 1  # one seed is quick: all cells of a page are so
    values = [entry["value"] for entry in entries]

    def mean(name: str) -> float | None:
        if alone:
            found: float | None = first[name]
            return found
        known = [entry[name] for entry in entries if entry[name] is not None]
        return statistics.fmean(known) if known else None

    return Figure(
        value=values[0] if alone else statistics.fmean(values),
        stderr=first["stderr"] if alone else _mean_error(entries),
        low=mean("p10"),
        high=mean("p90"),
        unit=first["unit"],
        n=int(first["n"]),
        n_unit=first["n_unit"],
        token_hash=first["token_hash"],
        higher_is_better=bool(first["higher_is_better"]),
        kernel=first["kernel"],
        notes=_notes_of_figure(first["notes"] or ""),
        seeds=len(entries),
        spread=None if alone else deviation(values),
        median=mean("p50"),
        p99=mean("p99"),
        busy=_different([_note(entry["notes"] or "", BUSY) for entry in entries]),
        items=_items_of(entries),
    )


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample: that of statistics.stdev to the last bit, but quickly.

    NaN if a value is not finite. With integers z = 2^k x, where
    n (n - 1) 4^k s^2 = n sum(z^2) - sum(z)^2, it is exact until the root is rounded.
    """
    if not all(map(math.isfinite, values)):
        return math.nan
    ratios = [float(each).as_integer_ratio() for each in values]
    unit = max(below for _, below in ratios)  # all of these are powers of two
    whole = [above * (unit // below) for above, below in ratios]
    count = len(values)
    square = count * sum(each * each for each in whole) - sum(whole) ** 2
    parts = count * (count - 1) * unit * unit
    shift = max(0, 130 - square.bit_length() + parts.bit_length())
    shift += shift % 2
    root = math.isqrt((square << shift) // parts)  # of 65 bits at least, or 0
    inexact = root * root * parts != square << shift  # rounds as a bit below the last would
    return (2 * root + inexact) / (1 << shift // 2 + 1)


def _mean_error(entries: list[dict[str, Any]]) -> float | None:
    errors = [entry["stderr"] for entry in entries if entry["stderr"] is not None]
    return math.sqrt(statistics.fmean(error**2 for error in errors)) if errors else None


def _items_of(entries: list[dict[str, Any]]) -> tuple[Items, ...]:
    if entries[0]["items"] is None:
        return ()
    found = [entry["items"] for entry in sorted(entries, key=itemgetter("seed"))]
    return () if None in found else tuple(found)


def _order(row: Row) -> tuple[Any, ...]:
    return row.model, *in_order(row)


def in_order(row: Row) -> tuple[Any, ...]:
    """Full precision, then descending bits; methods without calibration before those with it."""
    return (
        not row.full_precision,
        -(row.bits or 0),
        -(row.group_size or math.inf),  # one grid per row, then descending group sizes
        row.scheme,
        row.calibration is not None,
        row.method_label,
        row.recipe_label,
        row.calibration_tokens or 0.0,
        row.variant,
        row.calibration or "",
        row.seeds,
        row.cells,
    )
