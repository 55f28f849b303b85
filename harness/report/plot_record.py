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


class Page:
    """Where a recording is drawn again: a renderer, and the size of its dots by those recorded."""

    def __init__(self, renderer: RendererBase, scale: float) -> None:
        self.renderer = renderer
        self.scaling = None if scale == 1 else Affine2D().scale(scale)

    def place(self, transform: Affine2D) -> Affine2D:
        """A transform to dots, to those of this page."""
        if self.scaling is None:
            return transform
        return Affine2D(self.scaling.get_matrix() @ transform.get_matrix())

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A point in dots, in those of this page."""
        if self.scaling is None:
            return x, y
        across, along = self.scaling.transform((x, y))
        return across, along

    def look(self, kept: GraphicsContextBase) -> GraphicsContextBase:
        """How something is drawn, for this renderer: what clips is in dots, all else in points."""
        gc = self.renderer.new_gc()
        gc.copy_properties(kept)
        if self.scaling is not None:
            rectangle = kept.get_clip_rectangle()
            if rectangle is not None:
                gc.set_clip_rectangle(self.scaling.transform_bbox(rectangle))
            clip: Any = kept.get_clip_path()
            path, transform = clip
            if path is not None:
                gc.set_clip_path(TransformedPath(path, transform + self.scaling))
        return gc


Call = Callable[[Page], None]


class Recorder(RendererBase):
    """Keeps what a figure draws, in dots of a picture of `dpi`; texts are as wide as in a PNG.

    It lasts as long as the process: matplotlib keeps the widths of texts as long as the renderer.
    """

    def __init__(self, dpi: float) -> None:
        super().__init__()
        self.dpi = dpi
        self.size = 0, 0
        self.calls: list[Call] = []
        self._png: Any = RendererAgg(1, 1, dpi)  # type: ignore[no-untyped-call]

    def get_canvas_width_height(self) -> tuple[int, int]:
        return self.size

    def points_to_pixels(self, points: Any) -> Any:
        return self._png.points_to_pixels(points)

    def get_text_width_height_descent(
        self, s: str, prop: Any, ismath: Any
    ) -> tuple[float, float, float]:
        found: tuple[float, float, float] = self._png.get_text_width_height_descent(s, prop, ismath)
        return found

    def open_group(self, s: str, gid: str | None = None) -> None:
        self.calls.append(lambda page: page.renderer.open_group(s, gid))

    def close_group(self, s: str) -> None:
        self.calls.append(lambda page: page.renderer.close_group(s))

    def draw_path(self, gc: Any, path: Any, transform: Any, rgbFace: Any = None) -> None:
        kept, placed = _kept(gc), transform.frozen()

        def again(page: Page) -> None:
            page.renderer.draw_path(page.look(kept), path, page.place(placed), rgbFace)

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

        def again(page: Page) -> None:
            form, place = page.place(formed), page.place(placed)
            page.renderer.draw_markers(page.look(kept), marker_path, form, path, place, rgbFace)

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

        def again(page: Page) -> None:
            where = page.place(formed), paths, all_transforms, offsets, page.place(placed)
            page.renderer.draw_path_collection(page.look(kept), *where, *looks, **more)

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

        def again(page: Page) -> None:
            down = y if page.renderer.flipy() else height - y
            across, along = page.point(x, down)
            look = page.look(kept)
            page.renderer.draw_text(look, across, along, s, prop, angle, ismath, mtext)

        self.calls.append(again)


def _kept(gc: GraphicsContextBase) -> GraphicsContextBase:
    """How something is drawn, apart from the artist, which draws other things with it."""
    kept = GraphicsContextBase()
    kept.copy_properties(gc)
    clipped = kept.get_clip_rectangle()
    kept.set_clip_rectangle(None if clipped is None else clipped.frozen())
    return kept


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
        page = Page(renderer, self.figure.dpi / self._dpi)
        for call in self._calls:
            call(page)


def recorded(figure: Figure, dpi: float) -> Figure:
    """A figure that draws what `figure` does, without its artists.

    dpi  dots per inch of its PNG, whose pixels are those of `figure`. In other formats the texts
         stand where they stand there: two points at most from where their own widths, which are
         not rounded to pixels, would put a centred one.
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
