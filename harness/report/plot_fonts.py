"""The font of plots: the letters that plots are written in, of matplotlib's own font.

A PDF embeds the glyphs that it has. Taking these out of the whole font, with its 6,000 glyphs, took
a third of the time of a plot; of this one, with some 500, it is hardly seen. A letter that it lacks
comes from the whole font, which matplotlib asks next.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

WHOLE = "DejaVu Sans"  # comes with matplotlib; its licence asks for another name of what is changed
FAMILY = "Bitsweep Sans"
STYLES = {"": "normal", " Bold": "bold"}
# Basic Latin to Latin Extended-A, Greek, punctuation, arrows, mathematics.
RANGES = ((0x20, 0x17F), (0x370, 0x3FF), (0x2010, 0x2044), (0x2190, 0x2199), (0x2200, 0x226B))
# How letters are placed, which a PDF says of each of them.
LAYOUT_TABLES = ("GDEF", "GPOS", "GSUB", "MATH", "kern")
FAMILY_ID, FULL_NAME_ID, POSTSCRIPT_ID = 1, 4, 6  # of the table of names


@cache
def font_families() -> tuple[str, str]:
    """The families for `font.family`, made known to matplotlib: the small font, then the whole."""
    from matplotlib import font_manager

    folder = tempfile.TemporaryDirectory(prefix="bitsweep-fonts-")
    _folders.append(folder)  # it lasts as long as the process, for matplotlib reads the files late
    for style, weight in STYLES.items():
        whole = font_manager.FontProperties(family=WHOLE, weight=weight)
        file = Path(folder.name) / f"{FAMILY}{style}.ttf".replace(" ", "")
        _write_small(font_manager.findfont(whole, fallback_to_default=False), file, style)
        font_manager.fontManager.addfont(file)
    return FAMILY, WHOLE


@contextmanager
def kept_fonts() -> Iterator[None]:
    """Context: matplotlib keeps which files a text is set in, for other texts.

    It looks for them again for every text and format, by the families and settings of the process,
    which are those of `own_style` meanwhile.
    """
    from matplotlib import font_manager

    manager: Any = font_manager.fontManager
    find = getattr(manager, "_find_fonts_by_props", None)
    if find is None or "_find_fonts_by_props" in vars(manager):
        yield  # no part of matplotlib's interface: a later version may do without
        return

    def found(prop: Any, *more: Any, **others: Any) -> list[Any]:
        if more or others or not isinstance(prop, font_manager.FontProperties):
            files: list[Any] = find(prop, *more, **others)
            return files
        key = tuple(vars(prop).values())
        if key not in _files:
            _files[key] = find(prop)
        return list(_files[key])

    manager._find_fonts_by_props = found
    try:
        yield
    finally:
        del manager._find_fonts_by_props  # of this one, so that its class's is found again


@contextmanager
def kept_subsets() -> Iterator[None]:
    """Context: the PDF backend keeps the letters that it took out of a font, for other plots.

    The plots of models need the same few sets of letters, and taking them out was a tenth of the
    time of drawing. matplotlib has no setting for it, so its own functions are replaced meanwhile.
    Tables of the font that no reader of a PDF uses are taken out before, which halves that time.
    """
    from fontTools import subset
    from matplotlib.backends import _backend_pdf_ps

    backend: Any = _backend_pdf_ps
    if not (hasattr(backend, "get_glyphs_subset") and hasattr(backend, "font_as_file")):
        yield  # no part of matplotlib's interface: a later version may do without
        return
    make, write, load = backend.get_glyphs_subset, backend.font_as_file, subset.load_font

    def without_layout(*arguments: Any, **named: Any) -> Any:
        font = load(*arguments, **named)
        for table in LAYOUT_TABLES:
            if table in font:
                del font[table]
        return font

    def subset_of(file: Any, glyphs: Iterable[Any]) -> AbstractContextManager[Any]:
        key = (str(file), frozenset(glyphs))
        if key not in _subsets:
            with make(file, glyphs) as found:
                font = getattr(found, "font", found)  # before matplotlib 3.11 it is the font
                _subsets[key] = found, font, write(font).getvalue()
        return nullcontext(_subsets[key][0])

    def as_file(font: Any) -> io.BytesIO:
        known = (data for _, each, data in _subsets.values() if each is font)
        return io.BytesIO(next(known))

    backend.get_glyphs_subset, backend.font_as_file = subset_of, as_file
    subset.load_font = without_layout
    try:
        yield
    finally:
        backend.get_glyphs_subset, backend.font_as_file = make, write
        subset.load_font = load


_files: dict[tuple[Any, ...], list[Any]] = {}
_subsets: dict[tuple[str, frozenset[Any]], tuple[Any, Any, bytes]] = {}
_folders: list[tempfile.TemporaryDirectory[str]] = []


def _write_small(whole: str, file: Path, style: str) -> None:
    """Write the letters of RANGES of a font, with their kerning and without ligatures."""
    from fontTools import subset

    options = subset.Options(
        layout_features=["kern"], legacy_kern=True, glyph_names=True, name_IDs=["*"]
    )
    options.drop_tables += ["FFTM"]  # dates of the tool that made the font
    font = subset.load_font(whole, options)
    chosen = subset.Subsetter(options)
    chosen.populate(unicodes=[code for low, high in RANGES for code in range(low, high + 1)])
    chosen.subset(font)
    names = {FAMILY_ID: FAMILY, FULL_NAME_ID: f"{FAMILY}{style}"}
    names[POSTSCRIPT_ID] = f"{FAMILY}{style.replace(' ', '-')}".replace(" ", "")
    for record in font["name"].names:
        if record.nameID in names:
            record.string = names[record.nameID]
    font["name"].names = [each for each in font["name"].names if each.nameID not in (16, 17)]
    font.save(file)
