"""Write the page of a report: one HTML file that needs no server and no network.

A function of its records: the same records give the same bytes. Everything from records is data in
JSON, which the page's scripts put into text nodes only, so no text can become markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from harness.paired.comparison import Comparison
from harness.records.record import Record
from harness.report.assemble import OfModel
from harness.report.page.cells import curves, gather
from harness.report.page.details import details
from harness.report.page.pairs import compared_pairs
from harness.report.rows import FigureKey
from harness.suites.base import Suite

SCRIPTS = ("elements.js", "table.js", "axes.js", "plots.js", "pareto.js", "cell.js", "page.js")


def page(
    records: Sequence[Record],
    models: Sequence[OfModel],
    notes: Sequence[str],
    title: str,
    made: Sequence[str],
    suites: Mapping[str, Suite],
) -> str:
    """The HTML of records.

    models  their rows, one a cell, by model.
    notes   sentences on how the rows were chosen.
    made    sentences on the environments of the records.
    suites  specs by name, for suites that are not built in.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    folder = resources.files(__package__)

    def part(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown, opened = content(records, models, notes, made, suites)
    return template.from_string(part("page.html")).render(
        title=title,
        style=part("style.css"),
        data=_in_script(shown),
        details=_in_script(opened),
        scripts="\n".join(map(part, SCRIPTS)),
        plotly=get_plotlyjs(),
    )


def content(
    records: Sequence[Record],
    models: Sequence[OfModel],
    notes: Sequence[str],
    made: Sequence[str],
    suites: Mapping[str, Suite],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page shows at once, and what it shows of a cell that is opened."""
    rows = [row for each in models for row in each.rows]
    gathered, cells = gather(models)
    names = list(gathered.columns)
    tested = {name: gathered.keys[name] for name in names if gathered.columns[name]["compared"]}
    compared = compared_pairs(rows, tested, _known(models))
    numbers = {name: index for index, name in enumerate(names)}
    for pair in compared["pairs"].values():
        for each in pair:
            each[0] = numbers[each[0]]
    groups = [
        {"key": key, "name": each["name"], "notes": _notes(each["notes"], cells)}
        for key, each in gathered.groups.items()
    ]
    shown = {
        "columns": list(gathered.columns.values()),
        "groups": groups,
        "cells": cells,
        "said": list(gathered.said.numbers),
        "compared": compared,
        "curves": curves(rows, suites),
        "notes": list(notes),
        "made": list(made),
        "records": len(records),
    }
    return shown, details(records, [each["key"] for each in cells])


def _known(models: Sequence[OfModel]) -> dict[tuple[int, int, FigureKey], Comparison]:
    """The comparisons of all tables, by indices among the rows of all models."""
    known, start = {}, 0
    for model in models:
        for each in model.joined:
            for (index, key), made in each.differences.found.items():
                known[start + each.differences.references[index, key], start + index, key] = made
        start += len(model.rows)
    return known


def _notes(found: Mapping[str, list[str]], cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """Notes of a group; one that is not of all models names its own."""
    every = {cell["model"] for cell in cells}
    return [
        text if set(models) == every else f"{', '.join(models)}: {text}"
        for text, models in found.items()
    ]


def _in_script(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
