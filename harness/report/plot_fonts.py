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
def kept_subsets() -> Iterator[None]:
    """Context: the PDF backend keeps the letters that it took out of a font, for other plots.

    The plots of models need the same few sets of letters, and taking them out was a tenth of the
    time of drawing. matplotlib has no setting for it, so its own functions are replaced meanwhile.
    """
    from matplotlib.backends import _backend_pdf_ps

    backend: Any = _backend_pdf_ps
    if not (hasattr(backend, "get_glyphs_subset") and hasattr(backend, "font_as_file")):
        yield  # no part of matplotlib's interface: a later version may do without
        return
    make, write = backend.get_glyphs_subset, backend.font_as_file

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
    try:
        yield
    finally:
        backend.get_glyphs_subset, backend.font_as_file = make, write


_subsets: dict[tuple[str, frozenset[Any]], tuple[Any, Any, bytes]] = {}
_folders: list[tempfile.TemporaryDirectory[str]] = []


def _write_small(whole: str, file: Path, style: str) -> None:
    """Write the letters of RANGES of a font, with their kerning and without ligatures."""
    from fontTools import subset

    options = subset.Options(legacy_kern=True, glyph_names=True, name_IDs=["*"])
    # Pairs of letters stand in "kern" as well; FFTM has dates of the tool that made the font.
    options.drop_tables += ["GDEF", "GPOS", "GSUB", "FFTM"]
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
