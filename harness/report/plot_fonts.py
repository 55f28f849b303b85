"""The font of plots: the letters that plots are written in, of matplotlib's own font.

A PDF embeds the glyphs that it has. Taking these out of the whole font, with its 6,000 glyphs, took
a third of the time of a plot; of this one, with some 500, it is hardly seen. A letter that it lacks
comes from the whole font, which matplotlib asks next.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

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
