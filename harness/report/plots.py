"""The plots of columns: figures against bits per weight, or by row with their spread.

Uses no pyplot and no global state. The same rows give the same bytes of PNG and SVG.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.assemble import columns_in_order
from harness.report.columns import AgainstBits, AgainstPosition, ByRow, SuiteTable
from harness.report.curves import curve_panel, curves_of, panels_of
from harness.report.rows import Figure as Measured
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
PANEL = (4.6, 3.5)  # inches
PANELS_A_ROW = 3

# Okabe and Ito's palette, which colour-blind readers can distinguish too. The first method without
# calibration and the first one with it have fixed colours in all plots.
UNCALIBRATED, CALIBRATED = "#D55E00", "#0072B2"
MORE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
LINES = ("-", ":", "-.", (0, (6, 2)), (0, (1, 3)))
REFERENCE = "#555555"

STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
    "svg.hashsalt": "bitsweep",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Drawn:
    """A plot as files: kind ("png", "svg") -> bytes."""

    name: str
    title: str
    files: dict[str, bytes]


def draw_all(rows: list[Row], declared: Mapping[str, SuiteTable]) -> list[Drawn]:
    """All plots of the columns for which the rows of one model have figures."""
    wanted: dict[AgainstBits | ByRow, list[FigureKey]] = {}
    for each in columns_in_order(rows, declared):
        plot = each.declared.plot
        if plot is not None and each.key not in wanted.setdefault(plot, []):
            wanted[plot].append(each.key)
    drawn = []
    with own_style():
        for plot, keys in wanted.items():
            if isinstance(plot, ByRow):
                figure = by_row_figure(rows, keys, plot) if _measured(rows, keys, plot) else None
            else:
                figure = bits_figure(rows, keys, plot) if _against_bits(rows, keys) else None
            if figure is not None:
                drawn.append(Drawn(plot.name, plot.title, save(figure)))
        for suite, table in declared.items():
            for curve in table.curves:
                if panels := panels_of(rows, suite, curve):
                    drawn.append(
                        Drawn(curve.name, curve.title, save(curves_figure(rows, panels, curve)))
                    )
    return drawn


def curves_figure(rows: list[Row], keys: list[FigureKey], plot: AgainstPosition) -> Figure:
    """One panel per task, one line per row with its standard error as a band.

    Lines of one method have its colour and, from the second on, dashes.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [row for row in rows if any(key in curves_of(row) for key in keys)]
    styles: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(shown):
        if row.full_precision:
            styles[number] = {"color": REFERENCE, "linestyle": "--", "linewidth": 1.1}
            continue
        alike = sum(row.label == other.label for other in shown[:number])
        styles[number] = {
            "color": colour_of(row.label, rows),
            "linestyle": LINES[alike % len(LINES)],
            "marker": MARKERS[alike % len(MARKERS)],
        }
    columns = min(len(keys), PANELS_A_ROW)
    lines = math.ceil(len(keys) / columns)
    legend = 0.2 * math.ceil(len(shown) / (2 * columns))
    figure = Figure(
        figsize=(PANEL[0] * columns, PANEL[1] * lines + 0.5 + legend), layout="constrained"
    )
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, key in zip(panels, keys, strict=False):
        logarithmic(panel, curve_panel(panel, shown, key, plot.axis, styles), math.inf)
    for panel in panels[len(keys) :]:
        panel.set_visible(False)
    if any(key[1] != rows[0].model for key in keys):  # a panel has the name of its text
        figure.suptitle(rows[0].model, fontsize=11, fontweight="bold")
    handles = [
        Line2D([], [], markersize=3.5, label=f"{row.label} {row.scheme_label}", **styles[number])
        for number, row in enumerate(shown)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns)
    return figure


def bits_figure(rows: list[Row], keys: list[FigureKey], plot: AgainstBits) -> Figure:
    """One panel per figure, one line per method, one marker per kind of scheme, bars of ± 1 error.

    Full precision is a dashed line with its error as a band.
    """
    from matplotlib.figure import Figure

    columns = min(len(keys), PANELS_A_ROW)
    lines = math.ceil(len(keys) / columns)
    width = max(PANEL[0] * columns, 5.4)
    figure = Figure(figsize=(width, PANEL[1] * lines + 0.75), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, key in zip(panels, keys, strict=False):
        _bits_panel(panel, rows, key, plot)
    for panel in panels[len(keys) :]:
        panel.set_visible(False)
    figure.suptitle(rows[0].model, fontsize=11, fontweight="bold")
    _bits_legend(figure, rows, keys)
    return figure


def _bits_panel(panel: Axes, rows: list[Row], key: FigureKey, plot: AgainstBits) -> None:
    shown = [row for row in rows if key in row.figures]
    factor = 100.0 if shown[0].figures[key].unit == "fraction" else 1.0
    full = next((row.figures[key] for row in shown if row.full_precision), None)
    ceiling = math.inf if full is None or plot.clip is None else plot.clip * full.value
    if full is not None:
        panel.axhline(factor * full.value, color=REFERENCE, linestyle="--", linewidth=1.1, zorder=1)
        error = factor * (full.stderr or 0.0)
        level = factor * full.value
        panel.axhspan(level - error, level + error, color=REFERENCE, alpha=0.13, linewidth=0)
    for (method, kind), series in _series(shown).items():
        points = [(row.bits_per_weight, row.figures[key]) for row in series]
        style = {"color": colour_of(method, rows), "marker": _marker(kind, rows)}
        _draw_series(panel, points, factor, ceiling, style)
    _axis_of_bits(panel, [row.bits_per_weight or 0 for row in shown if not row.full_precision])
    panel.set_ylabel(f"{key[2]}{', %' * (factor != 1)} ± standard error")
    if plot.logarithmic:
        logarithmic(panel, [row.figures[key].value for row in shown], ceiling)
    panel.set_title(key[1])


def _draw_series(
    panel: Axes,
    points: list[tuple[float | None, Measured]],
    factor: float,
    ceiling: float,
    style: dict[str, Any],
) -> None:
    inside = [(bits, each) for bits, each in points if bits is not None and each.value <= ceiling]
    beyond = [(bits, each) for bits, each in points if bits is not None and each.value > ceiling]
    panel.errorbar(
        [bits for bits, _ in inside],
        [factor * each.value for _, each in inside],
        yerr=[factor * (each.stderr or 0.0) for _, each in inside],
        capsize=2.5,
        elinewidth=1.0,
        alpha=0.95,
        markeredgecolor="white",
        markeredgewidth=0.6,
        **style,
    )
    for bits, each in beyond:
        panel.annotate(
            f"{each.value:,.0f}" if each.value < 1e6 else f"{each.value:.0e}",
            xy=(bits, 1.0),
            xytext=(bits, 0.9),
            xycoords=("data", "axes fraction"),
            textcoords=("data", "axes fraction"),
            arrowprops={"arrowstyle": "-|>", "color": style["color"], "linewidth": 1.3},
            color=style["color"],
            ha="center",
            va="top",
            fontsize=8.5,
        )


def _axis_of_bits(panel: Axes, bits: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = (min(bits), max(bits)) if bits else (2.0, 8.0)
    panel.set_xscale("log", base=2)
    panel.set_xlim(low * 0.88, high * 1.12)
    panel.xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 5, 6, 8, 12, 16]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("bits per weight, scales and zeros included")


def logarithmic(panel: Axes, values: list[float], ceiling: float) -> None:
    """Use a logarithmic scale if values are far apart, with room for arrows of clipped ones."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [value for value in values if value <= ceiling]
    clipped = len(shown) < len(values)
    if shown and (clipped or max(shown) > 3 * min(shown)):
        panel.set_yscale("log")
        narrow = max(shown) < 12 * min(shown)
        subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if narrow else (1, 2, 5)
        panel.yaxis.set_major_locator(LogLocator(subs=subs))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    if clipped:
        bottom, top = panel.get_ylim()
        panel.set_ylim(bottom, top * (top / bottom) ** 0.35)


def _bits_legend(figure: Figure, rows: list[Row], keys: list[FigureKey]) -> None:
    from matplotlib.lines import Line2D

    shown = [row for row in rows if any(key in row.figures for key in keys)]
    quantized = [row for row in shown if not row.full_precision]
    handles = [
        Line2D([], [], color=colour_of(method, rows), label=method)
        for method in dict.fromkeys(row.label for row in quantized)
    ]
    if len(quantized) < len(shown):
        full = next(row for row in shown if row.full_precision)
        handles.append(
            Line2D([], [], color=REFERENCE, linestyle="--", linewidth=1.1, label=full.scheme_label)
        )
    for kind in _kinds(quantized):
        marker = _marker(kind, rows)
        handles.append(
            Line2D([], [], color="#777777", marker=marker, linestyle="none", label=kind_name(kind))
        )
    columns = min(len(handles), 3 * min(len(keys), PANELS_A_ROW))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def by_row_figure(rows: list[Row], keys: Sequence[FigureKey], plot: ByRow) -> Figure:
    """One line per row: the figure (filled, p10 to p90) and the second metric (hollow)."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    lines = _measured(rows, keys, plot)
    figure = Figure(figsize=(6.4, 0.27 * len(lines) + 1.5), layout="constrained")
    panel = figure.subplots()
    for height, (row, found, beside) in enumerate(reversed(lines)):
        colour = REFERENCE if row.full_precision else colour_of(row.label, rows)
        low, high = found.low or found.value, found.high or found.value
        panel.plot([low, high], [height, height], color=colour, alpha=0.55, linewidth=3.2)
        panel.plot([found.value], [height], "o", color=colour)
        if beside is not None:
            panel.plot([beside.value], [height], "o", color=REFERENCE, markerfacecolor="white")
    panel.set_yticks(range(len(lines)))
    panel.set_yticklabels([f"{row.label}  {row.scheme_label}" for row, *_ in reversed(lines)])
    panel.set_xlim(left=0)
    panel.set_ylim(-0.6, len(lines) - 0.4)  # no marker cut by the axis
    panel.grid(visible=False, axis="y")
    panel.set_xlabel(plot.axis)
    panel.set_title(rows[0].model, fontweight="bold")
    if plot.beside is not None and any(beside is not None for *_, beside in lines):
        hollow = Line2D(
            [],
            [],
            color=REFERENCE,
            marker="o",
            markerfacecolor="white",
            linestyle="none",
            label=plot.beside[1],
        )
        figure.legend(handles=[hollow], loc="outside lower right", fontsize=8.5)
    return figure


def _measured(
    rows: list[Row], keys: Sequence[FigureKey], plot: ByRow
) -> list[tuple[Row, Measured, Measured | None]]:
    """(row, its figure, its second metric) of all rows with the figure."""
    measured = []
    for row in rows:
        key = next((key for key in keys if key in row.figures), None)
        if key is not None:
            other = None if plot.beside is None else (key[0], key[1], plot.beside[0])
            measured.append((row, row.figures[key], row.figures.get(other) if other else None))
    return measured


def _against_bits(rows: list[Row], keys: Sequence[FigureKey]) -> bool:
    """Whether any quantized row has one of the figures; full precision alone is not plotted."""
    return any(
        key in row.figures and row.bits_per_weight and not row.full_precision
        for row in rows
        for key in keys
    )


def _series(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of each line: one method and one kind of scheme, sorted by bits per weight."""
    series: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.bits_per_weight or 0):
        if not row.full_precision:
            series.setdefault((row.label, kind_of(row)), []).append(row)
    return series


def kind_of(row: Row) -> str:
    """A scheme without its bits: "", "g128", "g128_sym", "ternary_g8"."""
    return re.sub(r"^w\d+", "", row.scheme)


def kind_name(kind: str) -> str:
    """ "per row", "groups of 128", "groups of 128 sym"."""
    grouped = re.sub(r"_?g(\d+)", r" groups of \1", kind)
    name = grouped if grouped != kind else f"{kind} per row"
    return name.replace("_", " ").strip()


def _kinds(rows: list[Row]) -> list[str]:
    return sorted({kind_of(row) for row in rows if not row.full_precision})


def _marker(kind: str, rows: list[Row]) -> str:
    return MARKERS[_kinds(rows).index(kind) % len(MARKERS)]


def colour_of(label: str, rows: list[Row]) -> str:
    """The colour of a method: fixed for the first of each kind, else the next free one."""
    place = colour_order(rows).index(label)
    first = (UNCALIBRATED, CALIBRATED)
    return first[place] if place < 2 else MORE_COLOURS[(place - 2) % len(MORE_COLOURS)]


def colour_order(rows: list[Row]) -> list[str]:
    """Methods in the order of their colours; "" where no method sees data, or all do."""
    quantized = [row for row in rows if not row.full_precision]
    first = [
        min((r.label for r in quantized if bool(r.calibration) == seeing), default="")
        for seeing in (False, True)
    ]
    if first[0] == first[1]:
        first[0] = ""
    return [*first, *sorted({row.label for row in quantized} - set(first))]


@contextmanager
def own_style() -> Iterator[None]:
    """Context: our own settings, independent of the user's matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams  # typed by name in some versions
        settings.update(STYLE)
        yield


def save(figure: Figure) -> dict[str, bytes]:
    """PNG and SVG bytes without dates or version numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    saved = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        saved[kind] = buffer.getvalue()
    return saved
