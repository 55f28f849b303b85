"""The plots of columns against the calibration: one line per text, a band over seeds.

They answer which calibration text to take, and how much of it. Drawn for every method and scheme
whose rows differ in the number of calibration tokens. The same rows give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.report.assemble import columns_in_order
from harness.report.columns import AgainstBits
from harness.report.leading import MOST_PANELS, Leading, some_of
from harness.report.plot_style import add_legend, logarithmic, panels_in
from harness.report.plots import CALIBRATED as FIRST_COLOUR
from harness.report.plots import MARKERS, MORE_COLOURS, REFERENCE, UNCALIBRATED, Plot
from harness.report.rows import FigureKey, Row
from harness.report.texts import text_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIX = "by_calibration"
AXIS = "calibration tokens"
COLOURS = (FIRST_COLOUR, *MORE_COLOURS)
BAND = 0.18  # opacity


@dataclass(frozen=True)
class Panel:
    """One panel: a figure of the rows of one recipe; `quantity` is what it measures, in words."""

    key: FigureKey
    quantity: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Method, scheme and task; not a task that is called as the model, as embedded is."""
        first, task = self.rows[0], self.key[1]
        said = f"{first.recipe_label} {first.scheme_label}"
        return said if task == first.model else f"{said}, {task}"


def calibration_plots(leading: Leading) -> list[Plot]:
    """The plots against calibration tokens, of the rows of one model."""
    wanted: dict[AgainstBits, list[Panel]] = {}
    for each in columns_in_order(leading.rows, leading.declared):
        plot = each.declared.plot
        if isinstance(plot, AgainstBits):
            found = panels_of(leading.rows, each.key, each.declared.named)
            wanted.setdefault(plot, []).extend(found)
    return [
        Plot(
            f"{plot.name}_{SUFFIX}",
            f"{plot.name} against calibration tokens".capitalize(),
            partial(_leading_figure, leading, panels, plot),
        )
        for plot, panels in wanted.items()
        if panels
    ]


def _leading_figure(
    leading: Leading,
    panels: list[Panel],
    plot: AgainstBits,
) -> Figure:
    shown = _leading_panels(panels, leading)
    return calibration_figure(leading.rows, shown, plot, some_of(len(shown), len(panels), "panels"))


def _leading_panels(panels: list[Panel], leading: Leading) -> list[Panel]:
    """At most MOST_PANELS panels, those with the leading rows, in their order."""
    if len(panels) <= MOST_PANELS:
        return panels
    places = {row: place for place, row in enumerate(leading.ranked)}
    best = sorted(panels, key=lambda each: min(places[row] for row in each.rows))[:MOST_PANELS]
    return [each for each in panels if each in best]


def panels_of(rows: Sequence[Row], key: FigureKey, quantity: str) -> list[Panel]:
    """A panel for every recipe whose rows with the figure have two numbers of tokens or more."""
    recipes: dict[str, list[Row]] = {}
    for row in rows:
        if row.text is not None and row.calibration_tokens and key in row.figures:
            recipes.setdefault(row.recipe, []).append(row)
    return [
        Panel(key, quantity, tuple(found))
        for found in recipes.values()
        if len({row.calibration_tokens for row in found}) > 1
    ]


def calibration_figure(
    rows: Sequence[Row], panels: Sequence[Panel], plot: AgainstBits, said: str = ""
) -> Figure:
    """The panels of one plot: means over seeds joined by lines, bands of ± 1 deviation of seeds.

    said  after the name of the model, which panels these are.

    Full precision is dashed; methods without calibration of the same scheme are dotted.
    """
    figure, places = panels_in(len(panels), 0.3)
    names = text_names([row for panel in panels for row in panel.rows])
    handles: dict[str, Any] = {}
    for place, panel in zip(places, panels, strict=True):
        _draw(place, panel, rows, names, plot, handles)
    figure.suptitle(f"{rows[0].model}{said}", fontsize=9.5, fontweight="bold")
    for label, handle in handles.items():
        handle.set_label(label)
    add_legend(figure, list(handles.values()))
    return figure


def _draw(
    axes: Axes,
    panel: Panel,
    rows: Sequence[Row],
    names: Mapping[str, str],
    plot: AgainstBits,
    handles: dict[str, Any],
) -> None:
    from matplotlib.lines import Line2D

    key = panel.key
    percent = panel.rows[0].figures[key].unit == "fraction"
    factor = 100.0 if percent else 1.0
    values = [row.figures[key].value for row in panel.rows]
    for place, (text, name) in enumerate(names.items()):
        series = sorted(
            (row for row in panel.rows if row.text == text),
            key=lambda row: row.calibration_tokens or 0.0,
        )
        if not series:
            continue
        style: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
        }
        tokens = [row.calibration_tokens or 0.0 for row in series]
        means = [factor * row.figures[key].value for row in series]
        axes.plot(tokens, means, markeredgecolor="white", markeredgewidth=0.6, **style)
        spreads = [factor * (row.figures[key].spread or 0.0) for row in series]
        if any(spreads):
            low = [mean - sd for mean, sd in zip(means, spreads, strict=True)]
            high = [mean + sd for mean, sd in zip(means, spreads, strict=True)]
            several = [row.figures[key].seeds > 1 for row in series]  # one seed has no deviation
            shade: dict[str, Any] = {"color": style["color"], "alpha": BAND, "linewidth": 0}
            axes.fill_between(tokens, low, high, where=several, zorder=1, **shade)
        handles.setdefault(name, Line2D([], [], **style))
    for label, value, style in _levels(panel, rows, plot):
        axes.axhline(factor * value, linewidth=1.1, zorder=1, **style)
        handles.setdefault(label, Line2D([], [], linewidth=1.1, **style))
        values.append(value)
    _axis_of_tokens(axes, sorted({row.calibration_tokens or 0.0 for row in panel.rows}))
    seeds = max(row.figures[key].seeds for row in panel.rows)
    band = f", mean ± sd of {seeds} seeds" if seeds > 1 else ""
    axes.set_ylabel(f"{panel.quantity}{', %' * percent}{band}")
    if plot.logarithmic:
        logarithmic(axes, values, math.inf)
    axes.set_title(panel.title)


def _levels(
    panel: Panel, rows: Sequence[Row], plot: AgainstBits
) -> list[tuple[str, float, dict[str, Any]]]:
    """(label, value, style) of full precision and of uncalibrated methods at the same scheme.

    What lies beyond the plot's clip would press the lines together and is left out.
    """
    first, key = panel.rows[0], panel.key
    found: list[tuple[str, float, dict[str, Any]]] = []
    full = next((r.figures[key].value for r in rows if r.full_precision and key in r.figures), None)
    ceiling = math.inf if full is None or plot.clip is None else plot.clip * full
    if full is not None:
        found.append(("full precision", full, {"color": REFERENCE, "linestyle": "--"}))
    for row in rows:
        alike = row.scheme == first.scheme and row.text is None and not row.full_precision
        if alike and key in row.figures and row.figures[key].value <= ceiling:
            style = {"color": UNCALIBRATED, "linestyle": ":"}
            found.append((f"{row.label}, no calibration", row.figures[key].value, style))
    return found


def _axis_of_tokens(axes: Axes, tokens: Sequence[float]) -> None:
    """A logarithmic axis with a tick at every number of tokens that leaves room for its label."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xlim(tokens[0] / 1.25, tokens[-1] * 1.25)
    room = math.log2(tokens[-1] / tokens[0]) / 9  # doublings between two labels
    ticks: list[float] = []
    for each in tokens:
        if not ticks or math.log2(each / ticks[-1]) >= room:
            ticks.append(each)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(AXIS)


def short(tokens: float) -> str:
    """ "512", "2.0k", "131k", "1.0M"."""
    if tokens < 1000:
        return f"{tokens:.0f}"
    number, unit = (tokens / 1e3, "k") if tokens < 1e6 else (tokens / 1e6, "M")
    return f"{number:.1f}{unit}" if number < 10 else f"{number:.0f}{unit}"
