"""Letters as pdflatex sets them with its usual fonts."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_LETTERS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "|": r"\textbar{}",  # the usual fonts print a dash for it
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "•": r"\textbullet{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "↔": r"$\leftrightarrow$",
    "‖": r"$\Vert$",
    "∥": r"$\Vert$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "√": r"$\surd$",
    "∑": r"$\sum$",
    "°": r"$^{\circ}$",
    "µ": r"$\mu$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "δ": r"$\delta$",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "π": r"$\pi$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "å": r"\aa{}",
    "Å": r"\AA{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "\u00a0": "~",
    "\u202f": r"\,",
    "\u2009": r"\,",
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u ",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r ",
    "\u030b": "H ",
    "\u030c": "v ",
    "\u0327": "c ",
    "\u0328": "k ",
}
_SMALL = "".join(map(chr, range(0x2070, 0x207A))) + "⁺⁻₀₁₂₃₄₅₆₇₈₉¹²³ᵀ"
_RAISED = {
    each: (f"$_{{{plain}}}$" if "SUBSCRIPT" in unicodedata.name(each) else f"$^{{{plain}}}$")
    for each in _SMALL
    if (plain := unicodedata.normalize("NFKC", each).replace("−", "-")).isascii()
}


@lru_cache(maxsize=4096)  # names of rows stand in every table
def escaped(text: str) -> str:
    """A text as LaTeX. Letters that pdflatex lacks are kept for lualatex and xelatex."""
    text = re.sub(r"[ \t\r\n]+", " ", text).strip()
    text = re.sub(r'"([^"]*)"', "“\\1”", text)
    found = "".join(map(_letter, text))
    return re.sub(r"-(?=-)", "-{}", found) if "--" in text else found


def _letter(letter: str) -> str:
    for known in (_LETTERS, _RAISED):
        if letter in known:
            return known[letter]
    if letter.isascii():
        return letter
    base, *accents = list(unicodedata.normalize("NFD", letter))
    if base.isascii() and base.isalpha() and len(accents) == 1 and accents[0] in _ACCENTS:
        base = {"i": r"\i", "j": r"\j"}.get(base, base)
        return f"{{\\{_ACCENTS[accents[0]]}{base}}}"
    return f"\\ifdefined\\Umathchar {letter}\\else{{[U+{ord(letter):04X}]}}\\fi{{}}"
