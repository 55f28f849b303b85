"""Rows that differ in the calibration text alone: how far their figures are apart.

The spread over texts is one thing (another text, another model), the spread over seeds another
(another draw from the same text). The table has both beside each other.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.report.columns import Place, Shown
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Column, Note, Table, decimals_for, measured, significant

SUFFIX = "texts"
# Under the table of the rows themselves.
BESIDE_TEXTS = Note(
    "How far rows that differ in the calibration text alone are apart is a table of its own, the "
    "spread over calibration texts; it is not the deviation over seeds, which draw from one text."
)


@dataclass(frozen=True)
class Spread:
    """A figure over several calibration texts, all else equal.

    mean     over the texts, of their means over seeds.
    sd       over the texts, of the same means.
    seeds    standard deviation over seeds within a text, pooled; None with one seed each.
    best, worst  (value, name of the text).
    """

    mean: float
    sd: float
    seeds: float | None
    best: tuple[float, str]
    worst: tuple[float, str]

    @property
    def sds(self) -> tuple[float, float | None]:
        return self.sd, self.seeds


def text_names(rows: Sequence[Row]) -> dict[str, str]:
    """The calibration texts of rows with their names, made distinct by file or hash if needed."""
    found = {row.text: row.calibration or "" for row in rows if row.text is not None}
    shared = {name for name, count in Counter(found.values()).items() if count > 1}
    return {
        text: f"{name} ({_distinction(text)})" if name in shared else name
        for text, name in sorted(found.items(), key=lambda each: (each[1], each[0]))
    }


def _distinction(text: str) -> str:
    """The file and the first digits of its hash, a chat template; without them the protocol."""
    said = json.loads(text)
    chat = "chat template" * bool(said.get("chat_template"))
    words = filter(None, (said.get("path"), said.get("text", "")[:8], chat))
    return " ".join(words) or str(said.get("protocol"))


def text_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that differ in the calibration text alone, where there are two texts or more."""
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        if row.text is not None:
            groups.setdefault((row.recipe, row.text_size), []).append(row)
    return [group for group in groups.values() if len({row.text for row in group}) > 1]


def spread_of(figures: Mapping[str, Figure]) -> Spread:
    """The spread of figures by the name of their text; of two texts or more."""
    values = {name: each.value for name, each in figures.items()}
    sign = -1 if next(iter(figures.values())).higher_is_better else 1
    ranked = sorted((sign * value, name) for name, value in values.items())
    freedom = sum(each.seeds - 1 for each in figures.values())
    within = sum((each.seeds - 1) * (each.spread or 0.0) ** 2 for each in figures.values())
    return Spread(
        mean=statistics.fmean(values.values()),
        sd=statistics.stdev(values.values()),
        seeds=math.sqrt(within / freedom) if freedom else None,
        best=(sign * ranked[0][0], ranked[0][1]),
        worst=(sign * ranked[-1][0], ranked[-1][1]),
    )


def text_table(
    place: Place, model: str, rows: Sequence[Row], shown: Sequence[Shown]
) -> Table | None:
    """The table of spreads, a line for rows that differ in the text alone; None without any."""
    groups, names = text_groups(rows), text_names(rows)
    spreads = {
        (number, each.key): found
        for number, group in enumerate(groups)
        for each in shown
        if (found := _spread(group, each.key, names)) is not None
    }
    shown = [each for each in shown if any(each.key == key for _, key in spreads)]
    if not shown:
        return None
    head = [
        Column("method", "method", numeric=False),
        Column("scheme", "scheme", numeric=False),
        Column("windows", "windows", numeric=False),
        Column("texts", "texts"),
        Column("seeds", "seeds"),
    ]
    columns, exact = list(head), list(head)
    for each in shown:
        column, detail = each.column, each.declared.detail or each.key[2]
        for part in ("best", "worst"):
            columns.append(replace(column, name=f"{column.name}:{part}", detail=f"{part} {detail}"))
        for part, words in (("sd_texts", "sd of texts"), ("sd_seeds", "sd of seeds")):
            columns.append(replace(column, name=f"{column.name}:{part}", detail=words))
        for part in ("best", "best_text", "worst", "worst_text", "mean", "sd_texts", "sd_seeds"):
            exact.append(replace(column, name=f"{column.name}:{part}"))
    lines, numbers = [], []
    for number, group in enumerate(groups):
        line = _names_of(group)
        exact_line = list(line)
        for each in shown:
            found = spreads.get((number, each.key))
            line += _cells(found, group, each.key)
            exact_line += _exact(found)
        lines.append(line)
        numbers.append(exact_line)
    name, title = f"{place.name}_{SUFFIX}", f"Spread over calibration texts of {model}"
    csv = Table(name, model, title, exact, numbers)
    return Table(name, model, title, columns, lines, [_note(names)], csv=csv)


def _note(names: Mapping[str, str]) -> Note:
    return Note(
        f"Lines of rows that differ in the calibration text alone ({', '.join(names.values())}). "
        "sd of texts: standard deviation over the texts, of their means over seeds. sd of seeds: "
        "standard deviation over seeds within one text, pooled over the texts. Where both are "
        "alike, the seeds explain what the texts seem to do."
    )


def size_words(row: Row) -> str:
    """The windows of a row's calibration: "16 x 512", "16" where their length is the model's."""
    size = json.loads(row.text_size or "{}")
    length = size.get("length")
    return f"{size.get('sequences')}" + (f" x {length}" if length is not None else "")


def _names_of(group: Sequence[Row]) -> list[Cell]:
    first, size = group[0], size_words(group[0])
    texts = len({row.text for row in group})
    seeds = sorted({len(row.seeds) for row in group})
    said = "–".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    return [
        Cell(first.recipe_label, first.recipe_label),
        Cell(first.scheme_label, first.scheme_label),
        Cell(size, size),
        Cell(str(texts), float(texts)),
        Cell(said, said),
    ]


def _spread(group: Sequence[Row], key: FigureKey, names: Mapping[str, str]) -> Spread | None:
    """None unless two texts have the figure on the same sample."""
    samples = Counter(
        (row.figures[key].n, row.figures[key].token_hash) for row in _having(group, key)
    )
    if not samples:
        return None
    usual = samples.most_common(1)[0][0]
    found = {
        names[row.text or ""]: row.figures[key]
        for row in _having(group, key)
        if (row.figures[key].n, row.figures[key].token_hash) == usual
    }
    return spread_of(found) if len(found) > 1 else None


def _having(group: Sequence[Row], key: FigureKey) -> list[Row]:
    return [row for row in group if key in row.figures]


def _cells(found: Spread | None, group: Sequence[Row], key: FigureKey) -> list[Cell]:
    if found is None:
        return [Cell()] * 4
    fraction = _having(group, key)[0].figures[key].unit == "fraction"
    factor = 100.0 if fraction else 1.0
    digits = decimals_for(factor * (found.seeds or found.sd), 1 if fraction else 2)
    ends = [
        f"{measured(factor * value, None, digits)} {text}"
        for value, text in (found.best, found.worst)
    ]
    spreads = ["–" if each is None else significant(factor * each, 2) for each in found.sds]
    return [Cell(text) for text in (*ends, *spreads)]


def _exact(found: Spread | None) -> list[Cell]:
    if found is None:
        return [Cell()] * 7
    values = (*found.best, *found.worst, found.mean, *found.sds)
    return [Cell(value=value) for value in values]
