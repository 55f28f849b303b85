"""How plots look: sizes that fit the page of a paper, axes, legend, files."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.report.plot_fonts import font_families, kept_subsets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

DPI = 160
LABEL = 27  # letters of a line of the legend
# The size of one panel in inches by the panels in a row; a row is at most as wide as a text of 6.9.
PANELS = {1: (4.2, 2.9), 2: (3.4, 2.5), 3: (2.3, 2.1)}
# Nothing that a later version, or another day, would write differently.
NO_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}

# At level 3 zlib makes the smallest files of lines and texts, in two thirds of the usual time.
OPTIONS: dict[str, dict[str, Any]] = {"png": {"pil_kwargs": {"compress_level": 3}}}

STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.titley": 1.0,  # where it stands by itself, but not sought again for every format
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "svg.hashsalt": "bitsweep",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # publishers refuse Type 3
}


def panels_in(count: int, figure_height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, none of them empty: those of a last, shorter row are centred.

    figure_height  inches for what stands around the panels.
    """
    columns = count if count < 4 else 2 if count == 4 else 3
    lines = -(-count // columns)
    width, height = PANELS[columns]
    size = (width * columns, height * lines + figure_height)
    figure = new_figure(*size)
    grid = figure.add_gridspec(lines, 2 * columns)
    panels = []
    for number in range(count):
        line, place = divmod(number, columns)
        lacking = columns - min(columns, count - line * columns)
        start = 2 * place + lacking
        panels.append(figure.add_subplot(grid[line, start : start + 2]))
    return figure, panels


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, for `save`."""
    from matplotlib.figure import Figure

    from harness.report.plot_record import RecordingCanvas

    figure = Figure(figsize=(width, height), layout="constrained")
    RecordingCanvas(figure)
    return figure


def error_handle() -> Line2D:
    """The entry of a legend for error bars."""
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        color="#777777",
        marker="|",
        markersize=8,
        linestyle="none",
        label="± standard error",
    )


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend below all panels, in as many columns as the figure has room for.

    handles  artists with their labels; a tuple is one entry, with the label of its first.
    """
    from matplotlib.legend_handler import HandlerTuple

    firsts = [each[0] if isinstance(each, tuple) else each for each in handles]
    entries: dict[str, Any] = {
        "handles": handles,
        "labels": [textwrap.fill(str(each.get_label()), LABEL) for each in firsts],
        "handler_map": {tuple: HandlerTuple(ndivide=None, pad=0)},
    }
    room = 0.98 * figure.bbox.width
    columns = len(handles)
    while True:
        legend = figure.legend(**entries, loc="outside lower center", ncols=columns)
        size = legend.get_window_extent()
        if columns == 1 or size.width <= room:
            break
        columns = min(columns - 1, _most_columns(legend, room, figure.dpi))
        legend.remove()
    figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)


def _most_columns(legend: Legend, room: float, dpi: float) -> int:
    """No fewer columns than would fit: a legend of each number of them takes long to make."""
    texts = legend.get_texts()
    unit = float(texts[0].get_fontsize()) * dpi / 72  # pixels
    beside = unit * (legend.handlelength + legend.handletextpad)
    widths = [text.get_window_extent().width + beside for text in texts]
    for columns in range(len(widths), 1, -1):
        tall, rest = divmod(len(widths), columns)  # the first `rest` columns have a line more
        ends = [number * tall + min(number, rest) for number in range(columns + 1)]
        needed = sum(max(widths[a:b]) for a, b in itertools.pairwise(ends))
        if needed + unit * legend.columnspacing * (columns - 1) <= room:
            return columns
    return 1


def logarithmic(panel: Axes, values: list[float], ceiling: float) -> None:
    """Use a logarithmic scale if values are far apart, with room for arrows of clipped ones."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [value for value in values if value <= ceiling]
    clipped = len(shown) < len(values)
    if shown and min(shown) > 0 and (clipped or max(shown) > 3 * min(shown)):
        panel.set_yscale("log")
        ratio = max(shown) / min(shown)
        subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if ratio < 12 else (1, 2, 5) if ratio < 1000 else (1,)
        panel.yaxis.set_major_locator(LogLocator(subs=subs))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    if clipped:
        bottom, top = panel.get_ylim()
        panel.set_ylim(bottom, top * (top / bottom) ** 0.35)


@contextmanager
def own_style() -> Iterator[None]:
    """Context: our own settings, independent of the user's matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams  # typed by name in some versions
        settings.update(STYLE)
        settings["font.family"] = font_families()
        yield


def warm_up() -> None:
    """Import all that drawing needs, and make the font."""
    from matplotlib import figure
    from matplotlib.backends import backend_agg, backend_pdf, backend_svg

    assert all((figure, backend_agg, backend_pdf, backend_svg))
    font_families()


def save(figure: Figure) -> dict[str, bytes]:
    """PDF, PNG and SVG bytes of a `new_figure`, without dates or version numbers."""
    from harness.report.plot_axis import few_artists
    from harness.report.plot_record import recorded

    for panel in figure.axes:
        few_artists(panel)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine(None)  # laid out once; "none" would draw twice for every format
    drawn = recorded(figure, DPI)
    saved = {}
    for kind, metadata in NO_METADATA.items():
        buffer = io.BytesIO()
        with kept_subsets():
            drawn.savefig(buffer, format=kind, dpi=DPI, metadata=metadata, **OPTIONS.get(kind, {}))
        saved[kind] = buffer.getvalue()
    return saved
