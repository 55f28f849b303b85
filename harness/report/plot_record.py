"""A figure drawn once and written as many files: what it draws is recorded, and drawn again.

Half of the time of a file is what matplotlib does before it draws anything: artists find their
transforms, texts their places. A `Recorder` is a renderer of matplotlib's that keeps the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from matplotlib.artist import Artist
from matplotlib.backend_bases import FigureCanvasBase, GraphicsContextBase, RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D, TransformedPath

Call = Callable[[RendererBase, Affine2D], None]  # draws once more, at another number of dots


class Recorder(RendererBase):
    """Keeps what a figure draws, in dots of a picture of `dpi`; texts are as wide as in a PNG.

    It lasts as long as the process: matplotlib keeps the widths of texts as long as the renderer.
    """

    def __init__(self, dpi: float) -> None:
        super().__init__()
        self.dpi = dpi
        self.size = 0, 0
        self.calls: list[Call] = []
        drawn = RendererAgg(1, 1, dpi)
        self.points_to_pixels = drawn.points_to_pixels
        self.get_text_width_height_descent = drawn.get_text_width_height_descent

    def get_canvas_width_height(self) -> tuple[int, int]:
        return self.size

    def open_group(self, s: str, gid: str | None = None) -> None:
        self.calls.append(lambda to, _: to.open_group(s, gid))

    def close_group(self, s: str) -> None:
        self.calls.append(lambda to, _: to.close_group(s))

    def draw_path(self, gc: Any, path: Any, transform: Any, rgbFace: Any = None) -> None:
        kept, placed = _kept(gc), transform.frozen()

        def again(to: RendererBase, scaling: Affine2D) -> None:
            to.draw_path(_scaled(kept, to, scaling), path, placed + scaling, rgbFace)

        self.calls.append(again)

    def draw_markers(
        self,
        gc: Any,
        marker_path: Any,
        marker_trans: Any,
        path: Any,
        trans: Any,
        rgbFace: Any = None,
    ) -> None:
        kept, formed, placed = _kept(gc), marker_trans.frozen(), trans.frozen()

        def again(to: RendererBase, scaling: Affine2D) -> None:
            found = _scaled(kept, to, scaling)
            to.draw_markers(found, marker_path, formed + scaling, path, placed + scaling, rgbFace)

        self.calls.append(again)

    def draw_path_collection(
        self,
        gc: Any,
        master_transform: Any,
        paths: Any,
        all_transforms: Any,
        offsets: Any,
        offset_trans: Any,
        *looks: Any,
        **more: Any,
    ) -> None:
        kept, formed, placed = _kept(gc), master_transform.frozen(), offset_trans.frozen()

        def again(to: RendererBase, scaling: Affine2D) -> None:
            found = _scaled(kept, to, scaling)
            where = formed + scaling, paths, all_transforms, offsets, placed + scaling
            to.draw_path_collection(found, *where, *looks, **more)

        self.calls.append(again)

    def draw_text(
        self,
        gc: Any,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        ismath: Any = False,
        mtext: Any = None,
    ) -> None:
        kept, height = _kept(gc), self.size[1]

        def again(to: RendererBase, scaling: Affine2D) -> None:
            down = y if to.flipy() else height - y
            place = scaling.transform((x, down))
            to.draw_text(_scaled(kept, to, scaling), *place, s, prop, angle, ismath, mtext)

        self.calls.append(again)


def _kept(gc: GraphicsContextBase) -> GraphicsContextBase:
    """How something is drawn, apart from the artist, which draws other things with it."""
    kept = GraphicsContextBase()
    kept.copy_properties(gc)
    clipped = kept.get_clip_rectangle()
    kept.set_clip_rectangle(None if clipped is None else clipped.frozen())
    return kept


def _scaled(kept: GraphicsContextBase, to: RendererBase, scaling: Affine2D) -> GraphicsContextBase:
    """The same for another renderer: what is clipped is in dots, all else in points."""
    gc = to.new_gc()
    gc.copy_properties(kept)
    rectangle = kept.get_clip_rectangle()
    if rectangle is not None:
        gc.set_clip_rectangle(scaling.transform_bbox(rectangle))
    path, transform = kept.get_clip_path()
    if path is not None:
        gc.set_clip_path(TransformedPath(path, transform + scaling))
    return gc


@cache
def _recorder(dpi: float) -> Recorder:
    return Recorder(dpi)


class RecordingCanvas(FigureCanvasBase):
    """The canvas of a figure that is recorded."""

    def get_renderer(self) -> Recorder:
        """The renderer that figure, legend and layout ask for the sizes of texts."""
        return _recorder(self.figure.dpi)


class _Again(Artist):
    """Draws what was recorded."""

    def __init__(self, calls: Sequence[Call], dpi: float) -> None:
        super().__init__()
        self._calls, self._dpi = calls, dpi

    def draw(self, renderer: RendererBase) -> None:
        scaling = Affine2D().scale(self.figure.dpi / self._dpi)
        for call in self._calls:
            call(renderer, scaling)


def recorded(figure: Figure, dpi: float) -> Figure:
    """A figure that draws what `figure` does, without its artists.

    dpi  dots per inch of its PNG, whose pixels are those of `figure`. In other formats the texts
         stand where they stand there, within a point of where their own widths would put them.
    """
    figure.dpi = dpi
    recorder = _recorder(dpi)
    recorder.size = figure.canvas.get_width_height()
    recorder.calls = []
    figure.draw(recorder)
    again = Figure(figsize=tuple(figure.get_size_inches()), frameon=False)
    again.add_artist(_Again(recorder.calls, dpi))
    recorder.calls = []
    return again
