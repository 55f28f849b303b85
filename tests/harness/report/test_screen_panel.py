"""A panel on the screen against rich's own table of the same columns."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.report.screen_panel import Panel, ScreenColumn

TEXTS = st.sampled_from(["", "x", "12.3 ± 0.1¹", "漢", "failed", "a b", "é"])


def on_screen(renderable, width: int = 200, terminal: bool = False) -> str:
    colours = "truecolor" if terminal else None
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=colours)
    console.print(renderable)
    return file.getvalue()


@st.composite
def panels(draw) -> Panel:
    rows = draw(st.integers(0, 5))
    heads = st.sampled_from([("method",), ("bits/", "weight"), ("漢字", ""), ("ppl ↓",)])

    def column() -> ScreenColumn:
        texts = draw(st.lists(TEXTS, min_size=rows, max_size=rows))
        styles = st.sampled_from(["", "bold", "red"])
        looks = draw(st.lists(styles, min_size=rows, max_size=rows))
        return ScreenColumn(draw(heads), texts, looks, draw(st.booleans()))

    return Panel([column() for _ in range(draw(st.integers(1, 5)))])


@given(panels())
def test_lines_are_those_of_rich(panel) -> None:
    assert on_screen(panel) == on_screen(panel._shortened())


def test_styles_are_those_of_rich() -> None:
    columns = [
        ScreenColumn(("method",), ["RTN", "GPTQ"], ["", "bold"], False),
        ScreenColumn(("ppl",), ["failed", "9.21"], ["red", "bold"], True),
    ]
    text = on_screen(Panel(columns), terminal=True)
    assert "\x1b[1mmethod\x1b[0m" in text
    assert "\x1b[31mfailed\x1b[0m" in text
    assert (
        text.splitlines()[3:]
        == on_screen(Panel(columns)._shortened(), terminal=True).splitlines()[3:]
    )  # rich's heads have bold spaces


@pytest.mark.parametrize("width", [4, 8, 12])
def test_a_narrow_screen_shortens_texts(width) -> None:
    column = ScreenColumn(("method",), ["GPTQ act-order"], [""], False)
    text = on_screen(Panel([column]), width)
    assert text == on_screen(Panel([column])._shortened(), width)
    assert "…" in text
