"""What plots tell apart where there are more rows than a reader can."""

from dataclasses import replace

import pytest

from harness.records.record import LayerReport
from harness.report.by_calibration import calibration_plots
from harness.report.curve_plot import curve_plots, curves_figure
from harness.report.curves import panels_of
from harness.report.frame import from_records
from harness.report.leading import (
    MOST_LINES,
    MOST_METHODS,
    MOST_PANELS,
    MOST_ROWS,
    Leading,
    some_of,
)
from harness.report.pareto_plot import chosen_axes, pareto_figure
from harness.report.plot_style import own_style
from harness.report.plots import (
    OTHERS,
    bits_figure,
    colour_of,
    kind_of,
    marker_of,
    most_told_apart,
    turn_of,
)
from harness.report.row_plot import by_row_figure
from harness.report.rows import read_rows
from harness.suites import latency
from harness.suites.find import declared_tables
from harness.suites.perplexity import CURVE, PLOT

METHODS = 60
LAYERS = [
    LayerReport(
        name="fc", block=0, method="gptq", scheme="w4", outputs=2, inputs=2, bits_per_weight=4.0,
        loss=1.0, weight_error=0.1, damping=0.01, dead_columns=0, tokens=0, seconds=0.1,
    )
]  # fmt: skip
KEY = ("perplexity", "embedded_eval", "perplexity")


@pytest.fixture
def many(made_up):
    """Full precision and 60 methods at 4 bits; 7 is the best, 8 and 9 are worse and smaller."""

    def metrics(value: float):
        points = [
            made_up.perplexity(value / at, 0.1, name="nll_by_position", unit="nat",
                               task=f"one:{at}", notes={"position": str(at)})
            for at in (8, 64)
        ]  # fmt: skip
        return [made_up.perplexity(value), *points]

    records = [made_up.record("none", "w16", metrics=metrics(5.0))]
    for number in range(METHODS):
        value = 6.0 + (number - 7) % METHODS / 10
        made = {"config": {"method.damping": number}, "options": f"number {number:02}"}
        record = made_up.record("gptq", "w4", metrics=metrics(value), **made)
        bits = 4.0 - (number - 7) / 100 if number in (8, 9) else 4.0
        cell = record.cell.model_copy(update={"bits_per_weight": bits})
        records.append(record.model_copy(update={"cell": cell}))
    rows = read_rows(from_records(records)).rows
    return rows, declared_tables(rows, {})


def test_full_precision_and_the_front_come_first(many) -> None:
    rows, declared = many
    first = [row.variant for row in Leading(rows, declared).ranked[:4]]
    assert Leading(rows, declared).ranked[0].full_precision
    assert set(first[1:]) == {f"number {number:02}" for number in (7, 8, 9)}
    rest = [row for row in Leading(rows, declared).ranked[4:]]
    assert rest == [row for row in rows if row in set(rest)]  # in the order of tables


def test_few_rows_are_all_told_apart(many) -> None:
    rows, declared = many
    assert Leading(rows[: MOST_METHODS + 1], declared).methods() == rows[: MOST_METHODS + 1]
    assert Leading(rows, declared).rows_of(rows[:MOST_ROWS], MOST_ROWS) == rows[:MOST_ROWS]
    assert some_of(3, 3, "rows") == ""


def test_points_of_other_methods_are_grey_and_counted(many) -> None:
    rows, declared = many
    told = Leading(rows, declared).methods()
    assert len(told) == MOST_METHODS + 1
    with own_style():
        figure = bits_figure(told, {KEY: "perplexity"}, PLOT, rows)
    (panel,) = figure.axes
    (cloud,) = [line for line in panel.lines if line.get_color() == OTHERS["color"]]
    names = {row.name for row in told}
    expected = [
        (row.bits_per_weight, row.figures[KEY].value) for row in rows if row.name not in names
    ]
    assert sorted(map(tuple, cloud.get_xydata())) == sorted(expected)
    assert len(expected) == METHODS - MOST_METHODS
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"and {METHODS - MOST_METHODS} more methods" in words
    assert len([word for word in words if "number" in word]) == MOST_METHODS


def test_a_pareto_plot_has_all_points_and_colours_for_the_leading_methods(many) -> None:
    rows, declared = many
    costs, qualities = chosen_axes(rows, declared)
    with own_style():
        figure = pareto_figure(Leading(rows, declared), [(costs[0], qualities[0])])
    (panel,) = figure.axes
    marks = [line for line in panel.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xydata()) for line in marks) == METHODS + 1
    grey = [line for line in marks if line.get_color() == OTHERS["color"]]
    assert sum(len(line.get_xydata()) for line in grey) == METHODS - MOST_METHODS
    assert panel.lines.index(grey[0]) < min(
        panel.lines.index(line) for line in marks if line not in grey
    )
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"and {METHODS - MOST_METHODS} more methods" in words


def test_the_legend_gives_every_method_a_colour_and_marker_of_its_own(many) -> None:
    rows, declared = many
    costs, qualities = chosen_axes(rows, declared)
    told = Leading(rows, declared).methods()
    with own_style():
        pareto = pareto_figure(Leading(rows, declared), [(costs[0], qualities[0])])
        bits = bits_figure(told, {KEY: "perplexity"}, PLOT, rows)
    for figure in (pareto, bits):
        legend = figure.legends[0]
        looks = {
            (line.get_color(), line.get_marker())
            for line, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
            if "number" in text.get_text()
        }
        assert len(looks) == MOST_METHODS
        points = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
        assert looks <= points


@pytest.mark.parametrize("kinds", [1, 2, 3, 5, 6, 8])
def test_no_two_series_share_colour_and_marker(many, kinds: int) -> None:
    """20 methods, the first without calibration, each with so many kinds of scheme."""
    rows = [
        replace(row, scheme=f"w4_g{2**kind}", calibration=row.calibration if number else None)
        for number, row in enumerate(many[0][1:21])
        for kind in range(kinds)
    ]
    names = list(dict.fromkeys(row.name for row in rows))[
        : min(MOST_METHODS, most_told_apart(rows))
    ]
    told = [row for row in rows if row.name in names]
    looks = {
        (colour_of(row.name, told), marker_of(kind_of(row), rows, turn_of(row.name, told)))
        for row in told
    }
    assert len(looks) == len(told) == kinds * len(names)
    assert len(names) == (MOST_METHODS if kinds <= 5 else 7)


def test_curves_show_some_rows_say_so_and_no_two_look_alike(many) -> None:
    rows, declared = many
    keys = panels_of(rows, "perplexity", CURVE)
    shown = Leading(rows, declared).rows_of(rows, MOST_LINES)
    said = some_of(len(shown), len(rows), "rows")
    with own_style():
        figure = curves_figure(shown, keys, CURVE, rows, said)
    assert figure.get_suptitle() == "embedded: 24 of 61 rows, Pareto fronts first"
    lines = figure.axes[0].lines
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(lines) == len(looks) == MOST_LINES
    (drawn,) = curve_plots(Leading(rows, declared))
    assert b"24 of 61 rows" in drawn.draw().files["svg"]


def test_a_plot_by_row_shows_some_rows_and_says_so(made_up) -> None:
    records = []
    for number in range(MOST_ROWS + 5):
        made = {"config": {"method.damping": number}, "options": f"number {number:02}"}
        records += made_up.cell("gptq", "w4", 5.5 + number, **made)
    rows = read_rows(from_records(records)).rows
    shown = Leading(rows, declared_tables(rows, {})).rows_of(rows, MOST_ROWS)
    plot = next(each.plot for each in latency.TABLE.columns if each.plot is not None)
    keys = [key for key in rows[0].figures if key[2] == "decode_ms"]
    with own_style():
        figure = by_row_figure(shown, keys, plot, some_of(len(shown), len(rows), "rows"))
    (panel,) = figure.axes
    assert panel.get_title() == "embedded: 40 of 45 rows, Pareto fronts first"
    assert len(panel.get_yticklabels()) == MOST_ROWS


def test_many_recipes_have_some_panels_by_calibration(made_up) -> None:
    records = []
    for number in range(MOST_PANELS + 3):
        for sequences in (16, 64):
            config = {"method.damping": number, "calib.sequences": sequences}
            made = {"config": config, "options": f"number {number:02}"}
            layers = [layer.model_copy(update={"tokens": 100 * sequences}) for layer in LAYERS]
            value = 9.0 - number / 10 - sequences / 1000  # the last are the best
            metrics = [made_up.perplexity(value)]
            records.append(made_up.record("gptq", "w4", metrics=metrics, **made))
            made = {**made, "metrics": [], "layers": layers}
            records.append(made_up.record("gptq", "w4", "quantization", **made))
    rows = read_rows(from_records(records)).rows
    (drawn,) = calibration_plots(Leading(rows, declared_tables(rows, {})))
    assert b"embedded: 12 of 15 panels" in drawn.draw().files["svg"]
    assert b"number 14" in drawn.draw().files["svg"]
