"""What a panel shows of an axis, with few artists: lines of the grid, ticks, labels.

matplotlib makes five artists for every tick, and finds ticks and the boxes of their labels up to
eight times for the layout and twice for every file: more than half of the time of a plot. Here a
grid is one line, the ticks are another, and only labels are artists each. The pixels are the same
as matplotlib's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.markers import TICKDOWN, TICKLEFT
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.backend_bases import RendererBase

BELOW = 0.5  # in the order of drawing: where `axes.axisbelow` puts axes


# Boxes of labels about their places, by text, dots per inch, families, size, and which axis.
_measured: dict[tuple[Any, ...], Bbox] = {}


def few_artists(panel: Axes) -> None:
    """Let `AxisArtist` draw both axes of a panel, with the settings that hold now."""
    for axis in (panel.xaxis, panel.yaxis):
        panel.add_artist(AxisArtist(axis))


class AxisArtist(Artist):
    """Draws a horizontal axis below its panel, or a vertical one to the left of it."""

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        self._axis: Any = axis
        self._panel: Any = axis.axes
        settings: Any = rcParams  # typed by name in some versions
        axis.set_visible(False)
        self._upright = axis is self._panel.yaxis
        self._edge = self._panel.spines["left" if self._upright else "bottom"]
        name = "ytick" if self._upright else "xtick"
        self._grid = self._line(self._place("grid"), zorder=2)
        self._grid.set(
            color=settings["grid.color"],
            linestyle=settings["grid.linestyle"],
            linewidth=settings["grid.linewidth"],
            visible=axis.get_tick_params()["gridOn"],
        )
        self._grid.set_clip_path(self._panel.patch)
        self._ticks = {each: self._line(self._place("tick1")) for each in ("major", "minor")}
        for each, line in self._ticks.items():
            line.set(
                color=settings[f"{name}.color"],
                linestyle="none",
                marker=TICKLEFT if self._upright else TICKDOWN,
                markersize=settings[f"{name}.{each}.size"],
                markeredgewidth=settings[f"{name}.{each}.width"],
            )
        pad = settings[f"{name}.major.size"] + settings[f"{name}.major.pad"]
        if self._upright:
            placed = self._panel.get_yaxis_text1_transform(pad)
        else:
            placed = self._panel.get_xaxis_text1_transform(pad)
        transform, vertical, horizontal = placed
        self._style: dict[str, Any] = {
            "transform": transform,
            "verticalalignment": vertical,
            "horizontalalignment": horizontal,
            "fontsize": settings[f"{name}.labelsize"],
            "color": settings[f"{name}.color"],
            "figure": self._panel.get_figure(),
        }
        self._font = tuple(settings["font.family"]), settings["font.size"], self._upright
        self._labels: list[Text] = []
        self.set(zorder=BELOW, clip_on=False)

    def _place(self, which: Any) -> Any:
        if self._upright:
            return self._panel.get_yaxis_transform(which)
        return self._panel.get_xaxis_transform(which)

    def _line(self, transform: Any, **style: Any) -> Line2D:
        return Line2D([], [], transform=transform, figure=self._panel.get_figure(), **style)

    def _update(self, renderer: RendererBase) -> tuple[list[Bbox], Bbox]:
        """Find the ticks and place all texts; return the boxes of labels, and that of the edge."""
        axis = self._axis
        major = axis.get_majorticklocs()
        texts = axis.get_major_formatter().format_ticks(major)
        shown = [
            (float(at), text)
            for at, text, seen in zip(major, texts, self._in_view(major), strict=True)
            if seen
        ]
        places = [at for at, _ in shown]
        minor = axis.get_minorticklocs()
        few = [float(at) for at, seen in zip(minor, self._in_view(minor), strict=True) if seen]
        gaps = [each for at in places for each in (at, at, math.nan)]
        self._set(self._grid, gaps, [0, 1, math.nan] * len(places))
        self._set(self._ticks["major"], places, [0] * len(places))
        self._set(self._ticks["minor"], few, [0] * len(few))
        for _ in range(len(self._labels), len(shown)):
            self._labels.append(Text(**self._style))
        del self._labels[len(shown) :]
        for label, (at, text) in zip(self._labels, shown, strict=True):
            label.set_text(text)
            label.set_position((0, at) if self._upright else (at, 0))
        boxes = self._boxes(renderer)
        edge = self._edge.get_window_extent(renderer)
        drawn = {"major": places, "minor": few}
        sizes = [self._ticks[each].get_markersize() for each, there in drawn.items() if there]
        out = renderer.points_to_pixels(max(sizes, default=0.0))
        if self._upright:
            edge = Bbox.from_extents(edge.x0 - out, edge.y0, edge.x1, edge.y1)
        else:
            edge = Bbox.from_extents(edge.x0, edge.y0 - out, edge.x1, edge.y1)
        self._place_texts(Bbox.union([*boxes, edge]), boxes, renderer)
        return boxes, edge

    def _boxes(self, renderer: RendererBase) -> list[Bbox]:
        """The boxes of labels; one of a text that was measured before is only moved."""
        found = []
        dpi = self._panel.get_figure().dpi
        for label in self._labels:
            x, y = label.get_transform().transform(label.get_position())
            key = (label.get_text(), dpi, *self._font)
            if key not in _measured:
                # Not where it stands: in the last bit, the box would depend on the first place.
                there = {**self._style, "transform": IdentityTransform()}
                text = Text(text=label.get_text(), **there)
                _measured[key] = text.get_window_extent(renderer)
            found.append(_measured[key].translated(x, y))
        return found

    def _in_view(self, places: Any) -> list[bool]:
        if not len(places):
            return []
        axis = self._axis
        low, high = sorted(axis.get_transform().transform(axis.get_view_interval()))
        close = 1e-10 * (high - low)
        found = axis.get_transform().transform(places)
        return [low - close <= each <= high + close for each in found]

    def _set(self, line: Line2D, along: list[float], across: list[float]) -> None:
        line.set_data(*((across, along) if self._upright else (along, across)))

    def _place_texts(self, whole: Bbox, boxes: list[Bbox], renderer: RendererBase) -> None:
        """Place the label of the axis beyond those of ticks, and what all of these leave out."""
        axis = self._axis
        away = renderer.points_to_pixels(axis.labelpad)
        x, y = axis.label.get_position()
        axis.label.set_position((whole.x0 - away, y) if self._upright else (x, whole.y0 - away))
        left_out = axis.get_offset_text()
        left_out.set_text(axis.get_major_formatter().get_offset())
        away = renderer.points_to_pixels(axis.OFFSETTEXTPAD)
        x, y = left_out.get_position()
        if self._upright:
            left_out.set_position((x, self._panel.bbox.ymax + away))
        else:
            bottom = Bbox.union(boxes).y0 if boxes else self._panel.bbox.ymin
            left_out.set_position((x, bottom - away))

    def get_tightbbox(self, renderer: RendererBase | None = None) -> Bbox:
        """The box that the layout leaves room for: that of a long label would press the panel."""
        assert renderer is not None
        boxes, edge = self._update(renderer)
        left_out = self._axis.get_offset_text()
        if left_out.get_text():
            boxes.append(left_out.get_window_extent(renderer))
        if self._axis.label.get_text():
            label = self._axis.label.get_window_extent(renderer)
            if self._upright:
                middle = (label.y0 + label.y1) / 2 - 0.5
                label = Bbox.from_extents(label.x0, middle, label.x1, middle + 1)
            else:
                middle = (label.x0 + label.x1) / 2 - 0.5
                label = Bbox.from_extents(middle, label.y0, middle + 1, label.y1)
            boxes.append(label)
        return Bbox.union([*boxes, edge])

    def draw(self, renderer: RendererBase) -> None:
        self._update(renderer)
        renderer.open_group("axis", gid=self.get_gid())
        for each in (self._grid, *self._ticks.values(), *self._labels):
            each.draw(renderer)
        self._axis.label.draw(renderer)
        self._axis.get_offset_text().draw(renderer)
        renderer.close_group("axis")
        self.stale = False
