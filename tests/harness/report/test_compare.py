"""Which figure is bold, which must not be compared, against a count by hand."""

import gc
import weakref
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.report.assemble import OfModel
from harness.report.columns import FigureColumn, Shown
from harness.report.compare import best_figures, compared_notes, other_sample, usual_sample
from harness.report.rows import Figure, Row
from harness.report.table import Column
from harness.suites.find import declared_tables

KEY = ("perplexity", "text", "perplexity")
FIGURE = Figure(
    5.0, 0.1, None, None, "ppl", 100, "tokens", "ab", higher_is_better=False, kernel=None, notes=""
)  # fmt: skip
ROW = Row(
    "m", "rtn", "RTN", False, "", "w4", None, None, 4.0, None, 4.1, (0,)
)  # fmt: skip


def row(value: float | None, bits: float = 4.0, full: bool = False, higher: bool = False) -> Row:
    figures = {} if value is None else {KEY: replace(FIGURE, value=value, higher_is_better=higher)}
    return replace(ROW, bits=bits, full_precision=full, figures=figures)


def shown() -> list[Shown]:
    return [Shown(KEY, FigureColumn("perplexity", "ppl"), Column("ppl", "perplexity"))]


cells = st.tuples(
    st.sampled_from([None, 1.0, 2.0, 3.0]), st.sampled_from([3.0, 4.0]), st.booleans()
)


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(cells, max_size=7), st.booleans())
def test_the_best_of_a_bit_width_is_that_of_a_sorted_list(
    drawn: list[tuple[float | None, float, bool]], higher: bool
) -> None:
    rows = [row(value, bits, full, higher) for value, bits, full in drawn]
    expected = set()
    for width in (3.0, 4.0):
        held = [
            (value, index)
            for index, (value, bits, full) in enumerate(drawn)
            if value is not None and bits == width and not full
        ]
        values = sorted(value for value, _ in held)
        if values and values[0] != values[-1]:
            best = values[-1] if higher else values[0]
            expected |= {(index, KEY) for value, index in held if value == best}
    assert best_figures(rows, shown()) == expected


def test_a_figure_on_another_sample_is_marked_and_the_usual_one_is_said() -> None:
    rows = [row(5.0), row(6.0), row(7.0), row(None)]
    other = replace(rows[2], figures={KEY: replace(rows[2].figures[KEY], token_hash="cd")})
    rows[2] = other
    samples = Counter(each.figures[KEY].token_hash for each in rows if each.figures)
    assert samples == {"ab": 2, "cd": 1}
    usual = usual_sample(rows, KEY)
    marks = [other_sample(each.figures[KEY], usual) for each in rows if each.figures]
    assert marks[:2] == [[], []]
    (said,) = marks[2]
    assert said.startswith("on 100 tokens that are not those of the column")
    best = best_figures(rows, shown())
    texts = [note.text for note in compared_notes(rows, shown(), best, {KEY: usual})]
    assert texts[0] == "Measured on text: 100 tokens."
    assert texts[1].startswith("± is one standard error")
    assert "Bold: best of its bit width." in texts
    assert not any("Several seeds" in text for text in texts)


def test_tables_keep_no_rows() -> None:
    """A process that makes many reports has the rows of those that it is making."""
    rows = [row(5.0), row(6.0)]
    gone = weakref.ref(rows[0])
    assert OfModel("model", rows, declared_tables(rows, {})).joined
    del rows
    gc.collect()
    assert gone() is None
