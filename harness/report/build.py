"""Write the report of records: summary.md, report.html, tables as CSV and LaTeX, plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records.record import Record
from harness.records.store import file_name, unique_name, write_each
from harness.report.assemble import OfModel
from harness.report.collection import uncollected
from harness.report.drawing import Helpers, drawing
from harness.report.frame import csv_lines, entries_of, metrics_csv
from harness.report.latex import LATEX, Latex, to_latex
from harness.report.page.write import page
from harness.report.pareto import pareto_table, size_table
from harness.report.render import to_csv, to_markdown
from harness.report.rows import make_rows, select_entries
from harness.report.sizes import size_plots
from harness.report.table import Table
from harness.report.tables import NO_SPECS, models_of, tables_of
from harness.report.terminal import for_terminal
from harness.suites.base import Suite
from harness.suites.find import declared_tables

PAGE = "report.html"


def build_report(
    records: Iterable[Record],
    out: Path,
    title: str = "Bitsweep report",
    suites: Mapping[str, Suite] = NO_SPECS,
    latex: Latex = LATEX,
) -> list[Path]:
    """Write the report of `records` into the folder `out`; return the paths, summary.md first.

    Each file is replaced atomically. Raises what `make_report` raises, and StoreError if the disk
    is full or not writable.
    """
    return write_report(make_report(list(records), title, suites, latex), out)


@dataclass(frozen=True)
class Report:
    """The files of a report by their paths, summary.md first, and the tables for a terminal."""

    files: dict[str, bytes]
    tables: list[Table]


def write_report(report: Report, out: Path) -> list[Path]:
    """Write the files of a report into the folder `out`; return their paths."""
    files = {out / name: data for name, data in report.files.items()}
    write_each(files)
    return list(files)


def make_report(
    records: list[Record],
    title: str,
    suites: Mapping[str, Suite] = NO_SPECS,
    latex: Latex = LATEX,
) -> Report:
    """The report of records: the same records give the same bytes.

    suites  specs by name, for suites that are not built in.
    latex   how the tables in LaTeX are set.

    Raises ValueError without records, ConfigError for a caption of no table.
    """
    if not records:
        raise ValueError("there are no records to report; make some with `bitsweep run`.")
    models = {each.cell.model for each in records}
    with uncollected(), drawing(len(models), len(records)) as helpers:
        return _made(records, title, suites, latex, helpers)


def _made(
    records: list[Record],
    title: str,
    suites: Mapping[str, Suite],
    latex: Latex,
    helpers: Helpers,
) -> Report:
    entries = entries_of(records)
    lines, ends = csv_lines(entries), _endings({each["model"] for each in entries})
    selection = select_entries(entries)
    every = make_rows(selection)
    models = models_of(every.rows, suites)
    helpers.give(models)
    by_cell = models
    if any(len(row.cells) > 1 for row in every.rows):  # otherwise a row is a cell already
        by_cell = models_of(make_rows(selection, by_cell=True).rows, suites)
    del entries, selection  # the largest of what is in memory here
    metrics = metrics_csv(lines).encode()
    summarized = tables_of(models, every.notes)
    tables = [*summarized, *_decision_tables(models)]
    named = {f"{table.name}{ends[table.model]}": table for table in tables}
    latex.check(list(named))
    files: dict[str, bytes] = {}
    for name, table in named.items():
        files[f"tables/{name}.csv"] = to_csv(table).encode()
        files[f"tables/{name}.tex"] = to_latex(table, latex.style(name)).encode()
    whole = page(records, by_cell, every.notes, title, provenance(records), suites)
    declared = declared_tables(every.rows, suites)
    by_size = [each.draw() for each in size_plots(every.rows, declared)]
    plots = helpers.collect()
    pictures: list[tuple[str, str]] = []
    for model, drawn in plots.items():
        for plot in drawn:
            name = f"{plot.name}{ends[model]}"
            pictures.append((f"{plot.title}, {model}", f"plots/{name}.png"))
            files |= {f"plots/{name}.{kind}": data for kind, data in plot.files.items()}
    for plot in by_size:
        pictures.append((plot.title, f"plots/{plot.name}.png"))
        files |= {f"plots/{plot.name}.{kind}": data for kind, data in plot.files.items()}
    files["metrics.csv"] = metrics
    summary = _summary(title, tables, pictures, records)
    shown = for_terminal(summarized, models, every.notes)
    return Report({"summary.md": summary.encode(), PAGE: whole.encode(), **files}, shown)


def _endings(models: set[str]) -> dict[str, str]:
    """Suffixes of file names by model: empty for a single model, else its name."""
    if len(models) == 1:
        return dict.fromkeys(models, "")
    alike = Counter(file_name(model).lower() for model in models)
    return {
        model: f"-{(file_name if alike[file_name(model).lower()] == 1 else unique_name)(model)}"
        for model in models
    }


def _decision_tables(models: Sequence[OfModel]) -> list[Table]:
    """Sizes and Pareto fronts of every model, for files alone."""
    made = (
        make(each.name, each.rows, each.declared)
        for each in models
        for make in (size_table, pareto_table)
    )
    return [each for each in made if each is not None]


def _summary(
    title: str, tables: list[Table], pictures: list[tuple[str, str]], records: list[Record]
) -> str:
    parts = [f"# {title}\n"]
    parts += [to_markdown(table) for table in tables]
    parts += [f"![{caption}]({path})\n" for caption, path in pictures]
    made = provenance(records)
    if made:
        parts.append("### How it was made\n\n" + "\n".join(f"- {line}" for line in made) + "\n")
    parts.append("Every metric, with its notes and its record's key: metrics.csv.\n")
    return "\n".join(parts)


def provenance(records: list[Record]) -> list[str]:
    """One line for every environment in the records."""
    return sorted({line for record in records if (line := _environment(record.environment))})


def _environment(environment: dict[str, Any]) -> str:
    machine = environment.get("machine") or {}
    packages = environment.get("packages") or {}
    gpu = environment.get("gpu") or {}
    computing = environment.get("computing") or {}
    cpu = machine.get("cpu")
    if cpu and computing.get("torch"):  # processors of one name may differ in it
        cpu = f"{cpu} ({computing['torch']})"
    parts = [gpu.get("name"), cpu]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    if environment.get("threads"):
        parts.append(f"{environment['threads']} threads")
    if environment.get("python"):
        parts.append(f"Python {environment['python']}")
    shown = ("bitsweep", "torch", "transformers", "lm-eval")
    parts += [f"{name} {packages[name]}" for name in shown if name in packages]
    commit = environment.get("commit") or {}
    if commit.get("id"):
        parts.append(f"commit {commit['id'][:12]}{' with local changes' * bool(commit['dirty'])}")
    return ", ".join(str(part) for part in parts if part)
