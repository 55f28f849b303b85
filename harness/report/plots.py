"""The plots of columns against bits per weight, and the looks of methods and schemes in all plots.

Uses no pyplot and no global state. The same rows give the same bytes of PNG and SVG.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.columns import AgainstBits
from harness.report.plot_style import (
    add_legend,
    error_handle,
    logarithmic,
    own_style,
    panels_in,
    save,
)
from harness.report.published import published_value
from harness.report.rows import Figure as Measured
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


# Okabe and Ito's palette, which colour-blind readers can distinguish too. The first method without
# calibration and the first one with it have fixed colours in all plots.
UNCALIBRATED, CALIBRATED = "#D55E00", "#0072B2"
MORE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "p", "<", ">", "h", "d", "8", "H")
TURNS = 3  # sets of markers, of methods whose colours come again; no factor of those colours
REFERENCE = "#555555"
OTHERS: dict[str, Any] = {"color": "#c4c4c4", "marker": ".", "markersize": 3.0, "zorder": 0.9}
DASHES = ("-", ":", "-.", (0, (5, 1)))


@dataclass(frozen=True)
class Drawn:
    """A plot as files: kind ("pdf", "png", "svg") -> bytes."""

    name: str
    title: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class Plot:
    """A plot that is known, not yet drawn."""

    name: str
    title: str
    figure: Callable[[], Figure]

    def draw(self) -> Drawn:
        """Draw it, which takes long."""
        with own_style():
            return Drawn(self.name, self.title, save(self.figure()))


def bits_figure(
    rows: list[Row],
    names: Mapping[FigureKey, str],
    plot: AgainstBits,
    every: Sequence[Row] = (),
) -> Figure:
    """One panel per figure, one line per method, one marker per kind of scheme, bars of ± 1 error.

    names  the quantity of every figure, for the axis.
    every  all rows of the model: points of methods that are not in `rows` are grey.

    Full precision is a dashed line with its error as a band; published figures are hollow.
    """
    figure, panels = panels_in(len(names), 0.3)
    told = {row.name for row in rows}
    others = [row for row in every if not row.full_precision and row.name not in told]
    hollow = [
        _bits_panel(panel, rows, key, plot, name, others)
        for panel, (key, name) in zip(panels, names.items(), strict=True)
    ]
    model = rows[0].model
    if any(key[1] != model for key in names):  # a text may have the name of its model
        figure.suptitle(model, fontsize=9.5, fontweight="bold")
    add_legend(figure, [*_bits_handles(rows, names, any(hollow)), *others_handle(others)])
    return figure


def others_handle(others: Sequence[Row]) -> list[Line2D]:
    """The entry of a legend for methods that are not told apart; none where there are none."""
    from matplotlib.lines import Line2D

    count = len({row.name for row in others})
    label = f"and {count} more methods"
    return [Line2D([], [], linestyle="none", label=label, **OTHERS)] if count else []


def _bits_panel(
    panel: Axes,
    rows: list[Row],
    key: FigureKey,
    plot: AgainstBits,
    name: str,
    others: Sequence[Row],
) -> bool:
    """Draw one figure of all rows; return whether published figures stand beside it."""
    shown = [row for row in rows if key in row.figures]
    factor = 100.0 if shown[0].figures[key].unit == "fraction" else 1.0
    full = next((row.figures[key] for row in shown if row.full_precision), None)
    ceiling = math.inf if full is None or plot.clip is None else plot.clip * full.value
    if full is not None:
        panel.axhline(factor * full.value, color=REFERENCE, linestyle="--", linewidth=1.0, zorder=1)
        error = factor * (full.stderr or 0.0)
        level = factor * full.value
        panel.axhspan(level - error, level + error, color=REFERENCE, alpha=0.13, linewidth=0)
    beyond: list[tuple[float, float, str]] = []
    for (method, kind), series in _series(shown).items():
        points = [
            (row.bits_per_weight, row.figures[key])
            for row in series
            if row.bits_per_weight is not None
        ]
        style = {**line_of(method, rows), "marker": marker_of(kind, rows, turn_of(method, rows))}
        _draw_series(panel, [each for each in points if each[1].value <= ceiling], factor, style)
        colour = style["color"]
        beyond += [(bits, each.value, colour) for bits, each in points if each.value > ceiling]
    quantized = [row for row in shown if not row.full_precision]
    cloud = [
        (row.bits_per_weight, row.figures[key].value)
        for row in others
        if row.bits_per_weight and key in row.figures and row.figures[key].value <= ceiling
    ]
    if cloud:
        bits, values = zip(*cloud, strict=True)
        panel.plot(bits, [factor * each for each in values], linestyle="none", **OTHERS)
    widths = [row.bits_per_weight for row in quantized if row.bits_per_weight]
    _axis_of_bits(panel, [*widths, *(each for each, _ in cloud)])
    panel.set_ylabel(f"{name}{', %' * (factor != 1)}")
    if plot.logarithmic:
        values_of_rows = [row.figures[key].value for row in shown]
        logarithmic(panel, [*values_of_rows, *(each for _, each in cloud)], ceiling)
    _point_up(panel, beyond)
    panel.set_title(key[1])
    return _draw_published(panel, shown, key, factor, ceiling)


def _draw_published(
    panel: Axes, rows: list[Row], key: FigureKey, factor: float, ceiling: float
) -> bool:
    """Hollow marks of the published figures of rows, that of full precision at the right edge."""
    found = [(row, value) for row in rows if (value := published_value(row, key)) is not None]
    right = panel.get_xlim()[1]
    drawn = False
    for row, value in found:
        bits = right if row.full_precision else row.bits_per_weight
        if bits is None or value > ceiling:
            continue
        panel.plot(
            [bits],
            [factor * value],
            linestyle="none",
            marker="o"
            if row.full_precision
            else marker_of(kind_of(row), rows, turn_of(row.name, rows)),
            color=REFERENCE if row.full_precision else colour_of(row.name, rows),
            markerfacecolor="white",
            markersize=7,
            clip_on=False,
            zorder=1.5,
        )
        drawn = True
    panel.set_xlim(right=right)
    return drawn


def _draw_series(
    panel: Axes, points: list[tuple[float, Measured]], factor: float, style: dict[str, Any]
) -> None:
    panel.errorbar(
        [bits for bits, _ in points],
        [factor * each.value for _, each in points],
        yerr=[factor * (each.stderr or 0.0) for _, each in points],
        capsize=2.0,
        elinewidth=0.9,
        alpha=0.95,
        markeredgecolor="white",
        markeredgewidth=0.5,
        **style,
    )


def _point_up(panel: Axes, beyond: list[tuple[float, float, str]]) -> None:
    """Arrows at the upper edge for (bits, value, colour) off the scale, each value on its line."""
    height: dict[float, int] = {}
    for bits, value, colour in sorted(beyond):
        near = next((each for each in height if abs(math.log2(bits / each)) < 0.25), bits)
        line = height[near] = height.get(near, -1) + 1
        text = f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"
        top = 0.9 - 0.075 * line
        panel.text(
            bits,
            top,
            text,
            transform=panel.get_xaxis_transform(),
            color=colour,
            ha="center",
            va="top",
            fontsize=7,
        )
        if line == 0:
            panel.annotate(
                "",
                xy=(bits, 1.0),
                xytext=(bits, 0.9),
                xycoords=("data", "axes fraction"),
                textcoords=("data", "axes fraction"),
                arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.1},
            )


def _axis_of_bits(panel: Axes, bits: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = (min(bits), max(bits)) if bits else (2.0, 8.0)
    panel.set_xscale("log", base=2)
    panel.set_xlim(low * 0.88, high * 1.12)
    panel.xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 5, 6, 8, 12, 16]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("stored bits per weight")


def _bits_handles(
    rows: list[Row], keys: Sequence[FigureKey] | Mapping[FigureKey, str], hollow: bool
) -> list[Any]:
    """What the legend explains: methods, full precision, kinds of schemes, published figures."""
    from matplotlib.lines import Line2D

    shown = [row for row in rows if any(key in row.figures for key in keys)]
    quantized = [row for row in shown if not row.full_precision]
    kinds = kinds_of(quantized)
    turns = turns_in(rows)
    handles: list[Any] = []
    for method in dict.fromkeys(row.name for row in quantized):
        handle = Line2D([], [], label=method, **line_of(method, rows))
        if len(turns) > 1:
            handle.set_marker(marker_of(kinds[0], rows, turn_of(method, rows)))
        handles.append(handle)
    if len(quantized) < len(shown):
        full = next(row for row in shown if row.full_precision)
        handles.append(
            Line2D([], [], color=REFERENCE, linestyle="--", linewidth=1.0, label=full.scheme_label)
        )
    handles += [kind_handle(kind, rows, turns) for kind in kinds]
    handles.append(error_handle())
    if hollow:
        style: dict[str, Any] = {
            "marker": "o",
            "linestyle": "none",
            "markerfacecolor": "white",
            "markersize": 7,
        }
        handles.append(Line2D([], [], color=REFERENCE, label="published", **style))
    return handles


def kind_handle(kind: str, rows: list[Row], turns: Sequence[int]) -> tuple[Line2D, ...]:
    """The entry of a legend for a kind of scheme: its marker in each set of them."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"color": "#777777", "linestyle": "none", "label": kind_name(kind)}
    if len(turns) > 1:
        style["markersize"] = 3.5  # so that they stand beside each other
    return tuple(Line2D([], [], marker=marker_of(kind, rows, turn), **style) for turn in turns)


def against_bits(rows: list[Row], key: FigureKey) -> bool:
    """Whether any quantized row has the figure; full precision alone is not plotted."""
    return any(
        key in row.figures and row.bits_per_weight and not row.full_precision for row in rows
    )


def _series(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of each line: one method and one kind of scheme, sorted by bits per weight."""
    series: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.bits_per_weight or 0):
        if not row.full_precision:
            series.setdefault((row.name, kind_of(row)), []).append(row)
    return series


def kind_of(row: Row) -> str:
    """A scheme without its bits: "", "g128", "g128_sym", "ternary_g8", "auto", "budget"."""
    return re.sub(r"^w\d+|(?<=^auto)[\d.]+|(?<=^budget)[\d.]+$", "", row.scheme)


def kind_name(kind: str) -> str:
    """ "per row", "groups of 128", "groups of 128 sym"."""
    grouped = re.sub(r"_?g(\d+)", r" groups of \1", kind)
    name = grouped if grouped != kind else f"{kind} per row"
    return name.replace("_", " ").strip()


def kinds_of(rows: list[Row]) -> list[str]:
    """The kinds of scheme in quantized rows, in the order of their markers."""
    return sorted({kind_of(row) for row in rows if not row.full_precision})


def marker_of(kind: str, rows: list[Row], turn: int = 0) -> str:
    """The marker of a kind of scheme in a set of them (turn_of)."""
    kinds = kinds_of(rows)
    return MARKERS[(turn * len(kinds) + kinds.index(kind)) % len(MARKERS)]


def turn_of(name: str, rows: list[Row]) -> int:
    """The set of markers of a method: where colours come again, neighbours have others.

    No two of most_told_apart(rows) methods have one colour and one set.
    """
    order = colour_order(rows)
    place = order.index(name) - 2
    return place % TURNS if len(order) - 2 > len(MORE_COLOURS) and place > 0 else 0


def turns_in(rows: list[Row]) -> list[int]:
    """The sets of markers that the methods of rows have."""
    return sorted({turn_of(row.name, rows) for row in rows if not row.full_precision})


def most_told_apart(rows: list[Row]) -> int:
    """How many methods can be told apart by colour and marker, with the kinds of scheme in rows."""
    sets = len(MARKERS) // max(1, len(kinds_of(rows)))
    return 2 + len(MORE_COLOURS) * (TURNS if sets >= TURNS else 1)


def colour_of(name: str, rows: list[Row]) -> str:
    """The colour of a method: fixed for the first of each kind, else the next free one."""
    place = colour_order(rows).index(name)
    first = (UNCALIBRATED, CALIBRATED)
    return first[place] if place < 2 else MORE_COLOURS[(place - 2) % len(MORE_COLOURS)]


def line_of(name: str, rows: list[Row]) -> dict[str, Any]:
    """Colour and dashes of a method: where colours come again, the dashes are others."""
    again = max(0, colour_order(rows).index(name) - 2) // len(MORE_COLOURS)
    return {"color": colour_of(name, rows), "linestyle": DASHES[again % len(DASHES)]}


def colour_order(rows: list[Row]) -> list[str]:
    """Methods in the order of their colours; "" where no method sees data, or all do."""
    quantized = [row for row in rows if not row.full_precision]
    first = [
        min((r.name for r in quantized if bool(r.calibration) == seeing), default="")
        for seeing in (False, True)
    ]
    if first[0] == first[1]:
        first[0] = ""
    return [*first, *sorted({row.name for row in quantized} - set(first))]
