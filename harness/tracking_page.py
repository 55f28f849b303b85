"""The report page of an experiment on Weights & Biases, built with its wandb-workspaces library.

The page is saved as JSON beside the runs, and created on the server when the tracker is online. The
same records give the same JSON.
"""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.schema import TrackerConfig
from harness.records.hashes import digest
from harness.records.record import Record
from harness.records.store import unique_name, write_atomically
from harness.report.assemble import columns_in_order
from harness.report.build import provenance
from harness.report.columns import AgainstBits
from harness.report.frame import from_records
from harness.report.render import to_markdown
from harness.report.rows import Row, read_rows
from harness.report.table import on_screen
from harness.report.tables import NO_SPECS, models_of, tables_of
from harness.suites.base import Suite
from harness.suites.find import declared_tables
from harness.tracking import (
    ONLINE,
    TrackingWarning,
    configuration,
    is_logged,
    log_cell,
    reason_of,
    session,
)

TITLE_LETTERS = 128  # of a report, at most
ID_DIGITS = 12
# wandb-workspaces puts values between quotes as they are, and reads them as Python does.
_QUOTED = str.maketrans({"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r"})


@dataclass(frozen=True)
class Tracked:
    """What became of an experiment: runs logged, runs that were there, the page, and warnings."""

    logged: int
    held: int
    page: Path | None
    trouble: list[str]


def track(
    cells: Sequence[Sequence[Record]],
    records: Sequence[Record],
    figures: Sequence[Path],
    settings: TrackerConfig,
    directory: Path,
    group: str,
    suites: Mapping[str, Suite] = NO_SPECS,
) -> Tracked:
    """Log the cells of an experiment that no run holds yet, and save its page.

    cells      the records of each.
    records    of the whole experiment, for its page.
    figures    PNG files of its plots.
    directory, group, suites  as of save_page.
    """
    logged = held = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrackingWarning)
        for cell in cells:
            if is_logged(cell, settings, directory):
                held += 1
                continue
            run = log_cell(configuration(cell), cell, figures, settings, directory, group)
            logged += run is not None
        plots = [figure.stem for figure in figures]
        page = save_page(records, plots, settings, directory, group, suites)
    trouble = [str(each.message) for each in caught if issubclass(each.category, TrackingWarning)]
    return Tracked(logged, held, page, trouble)


def save_page(
    records: Sequence[Record],
    plots: Sequence[str],
    settings: TrackerConfig,
    directory: Path,
    group: str,
    suites: Mapping[str, Suite] = NO_SPECS,
) -> Path | None:
    """Save the page of an experiment; return its JSON file, or None if there is none.

    plots      names of the plots that its runs have logged.
    directory  the results folder; the file is directory/wandb/reports/GROUP.json.
    group      name of the experiment.
    suites     specs by name, for suites that are not built in.

    Online, the page is created on the server, or replaced if the file says that it is there. Any
    error becomes a TrackingWarning.
    """
    if settings.name == "none" or not any(record.metrics for record in records):
        return None
    path = directory / "wandb" / "reports" / f"{unique_name(group)}.json"
    try:
        with session(directory, settings):
            page = make_page(records, plots, settings, group, suites)
            if settings.mode == ONLINE:
                page.id = _known_id(path, page.entity, page.project)
                write_atomically(path, _json(page))  # kept, whatever the server says
                page.save()
            write_atomically(path, _json(page))
    except Exception as error:  # tracking must not cost results
        warnings.warn(
            f"wandb has no page of {group} ({reason_of(error)}); its runs and records are kept. "
            f"`bitsweep sync {shlex.quote(str(directory))}` tries again.",
            TrackingWarning,
            stacklevel=2,
        )
        return None
    return path


def make_page(
    records: Sequence[Record],
    plots: Sequence[str],
    settings: TrackerConfig,
    group: str,
    suites: Mapping[str, Suite] = NO_SPECS,
) -> Any:
    """The page as a wandb_workspaces Report: tables, panels over the experiment's runs, origin."""
    from wandb_workspaces.reports import v2

    wr: Any = v2  # typed in part only
    entity = settings.entity or (_default_entity() if settings.mode == ONLINE else "")
    every = read_rows(from_records(records))
    tables = tables_of(models_of(every.rows, suites), every.notes)
    blocks: list[Any] = [wr.H2("Tables")]
    blocks += [wr.MarkdownBlock(to_markdown(on_screen(table))) for table in tables]
    blocks += [wr.H2("Runs"), _grid(wr, every.rows, plots, settings, entity, group, suites)]
    made = provenance(list(records))
    if made:
        blocks += [wr.H2("How it was made"), wr.UnorderedList([*made])]
    cells = len({record.cell_key for record in records})
    return wr.Report(
        project=settings.project,
        entity=entity,
        title=group[:TITLE_LETTERS],
        description=f"{cells} cell{'s' * (cells != 1)} measured by Bitsweep.",
        blocks=blocks,
        width="fluid",
    )


def _grid(
    wr: Any,
    rows: list[Row],
    plots: Sequence[str],
    settings: TrackerConfig,
    entity: str,
    group: str,
    suites: Mapping[str, Suite],
) -> Any:
    """Panels over the runs of the group: a scatter for every figure that is plotted, and media."""
    from wandb_workspaces import expr

    panels: list[Any] = []
    seen = set()
    for each in columns_in_order(rows, declared_tables(rows, suites)):
        plot = each.declared.plot
        if plot is None or each.key in seen:
            continue
        seen.add(each.key)
        name, title = "/".join(each.key), f"{each.declared.named}: {each.key[1]}"
        if isinstance(plot, AgainstBits):
            x, y = wr.SummaryMetric("bits_per_weight"), wr.SummaryMetric(name)
            panel = wr.ScatterPlot(title=title, x=x, y=y, log_y=plot.logarithmic or None)
        else:
            panel = wr.BarPlot(title=title, metrics=[wr.SummaryMetric(name)], title_x=plot.axis)
        panels.append(panel)
    if plots:
        panels.append(
            wr.MediaBrowser(title="plots", media_keys=[f"plots/{each}" for each in plots])
        )
    panels += [wr.WeavePanelSummaryTable(table_name="results"), wr.RunComparer(diff_only="split")]
    for number, panel in enumerate(panels):
        panel._id = digest([group, number])[:ID_DIGITS]
    runs = wr.Runset(
        entity=entity,
        project=settings.project,
        name=group,
        filters=expr.And(expr.Metric("Group") == group.translate(_QUOTED)),
        order=[wr.OrderBy("Name", ascending=True)],
    )
    runs._id = digest([group, "runs"])[:ID_DIGITS]
    return wr.PanelGrid(runsets=[runs], panels=panels)


def _default_entity() -> str:
    import wandb

    return str(wandb.Api().default_entity or "")


def _json(page: Any) -> str:
    made = page._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _known_id(path: Path, entity: str, project: str) -> str:
    """The server's id of the page in a file; "" if it was never there, or is of another project."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        same = (held["project"]["entityName"], held["project"]["name"]) == (entity, project)
        return str(held["id"]) if same else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
