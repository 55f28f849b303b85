"""Pareto fronts and sizes in tables and plots, on hand-made rows and by an oracle of all pairs."""

import csv
import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records.record import Record
from harness.report import from_records
from harness.report.leading import Leading
from harness.report.pareto import Axis, cost_axes, dominators, pareto_table, size_table
from harness.report.pareto_plot import chosen_axes, pareto_figure, pareto_plots
from harness.report.render import to_csv, to_markdown
from harness.report.rows import Row, read_rows
from harness.suites.find import declared_tables
from tests.harness.report.conftest import make_record, perplexity, serving_metrics


def cell(method: str, scheme: str, ppl: float, weights: float, ms: float) -> list[Record]:
    return [
        make_record(method, scheme, metrics=[perplexity(ppl)]),
        make_record(method, scheme, "latency", metrics=serving_metrics(weights, 1e6, ms, "512")),
    ]


def rows() -> list[Row]:
    """Full precision is best and largest; RTN w4 is beaten by GPTQ w4, but is the fastest."""
    records = [
        *cell("none", "w16", 5.0, 4e6, 3.0),
        *cell("rtn", "w4", 5.6, 1e6, 1.0),
        *cell("gptq", "w4", 5.2, 1e6, 2.0),
        *cell("gptq", "w3", 5.9, 8e5, 2.5),
        make_record("rtn", "w3", metrics=[perplexity(9.4)]),
    ]
    return read_rows(from_records(records)).rows


def tables():
    found = rows()
    return found, declared_tables(found, {})


def named(found: list[Row]) -> list[str]:
    return [f"{row.label} {row.scheme}" for row in found]


def test_dominated_rows_name_the_costs_and_who_beats_them() -> None:
    found, declared = tables()
    table = pareto_table("m", found, declared)
    assert table is not None
    said = dict(zip(named(found), [line[-1].text for line in table.rows], strict=True))
    assert said == {
        "full prec. w16": "front",
        "RTN w4": "bits, MB, serving MB",
        "GPTQ w4": "front",
        "RTN w3": "bits",
        "GPTQ w3": "ms",
    }
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    by = {
        (line["method"], line["scheme"], line["cost"]): (line["on_front"], line["dominated_by"])
        for line in lines
    }
    assert by["full prec.", "float32", "ms"] == ("True", "")
    assert by["RTN", "w4", "MB"] == ("False", "GPTQ w4")
    assert by["RTN", "w3", "bits"] == ("False", "GPTQ w3")
    assert by["GPTQ", "w3", "ms"] == ("False", "GPTQ w4")
    assert ("RTN", "w3", "ms") not in by  # it was not timed
    assert "Dominated in" in to_markdown(table)


def test_sizes_are_arithmetic_of_the_records() -> None:
    found, declared = tables()
    table = size_table("m", found, declared)
    assert table is not None
    lines = {
        (line["method"], line["scheme"]): line
        for line in csv.DictReader(io.StringIO(to_csv(table)))
    }
    assert len(lines) == 4  # without the row that was not timed
    quantized = lines["GPTQ", "w3"]
    assert float(quantized["bits_per_weight"]) == 3.07
    assert float(quantized["model_bits_per_weight"]) == 8 * 8e5 / 1e6
    assert float(quantized["cache_bytes"]) == 512 * 1000  # the model takes no 4096
    assert float(quantized["serving_bytes"]) == 8e5 + 512e3 + 5e5
    assert float(lines["full prec.", "float32"]["model_bits_per_weight"]) == 32
    assert "serving MB at 512" in to_markdown(table).replace("<br>", " ")


def test_without_sizes_the_bits_are_the_cost() -> None:
    records = [
        make_record("none", "w16", metrics=[perplexity(5.0)]),
        make_record("rtn", "w4", metrics=[perplexity(5.6)]),
    ]
    found = read_rows(from_records(records)).rows
    declared = declared_tables(found, {})
    assert [axis.name for axis in cost_axes(found, declared)] == ["bits"]
    assert size_table("m", found, declared) is None
    assert pareto_table("m", found[:1], declared) is None


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25)


@given(POINTS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_domination_is_that_of_all_pairs(points: list[tuple[int, int]], higher: bool) -> None:
    found = list(range(len(points)))
    cost = Axis("x", "x", lambda at: float(points[at][0]))
    quality = Axis("y", "y", lambda at: float(points[at][1]), higher)
    said = dominators(found, cost, quality)  # type: ignore[arg-type]

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        sign = -1 if higher else 1
        a, b = (one[0], sign * one[1]), (other[0], sign * other[1])
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    for at, point in enumerate(points):
        everyone = [each for each in points if beats(each, point)]
        assert (said[at] is None) == (not everyone)
        if everyone:
            assert beats(points[said[at]], point)
            assert said[said[at]] is None


def test_the_plot_has_a_panel_for_size_and_one_for_time() -> None:
    found, declared = tables()
    costs, qualities = chosen_axes(found, declared)
    assert [axis.name for axis in costs] == ["serving MB", "ms"]
    assert [axis.label for axis in qualities] == ["embedded_eval ppl"]
    figure = pareto_figure(Leading(found, declared), [(cost, qualities[0]) for cost in costs])
    size, time = figure.axes
    (front,) = [line for line in size.lines if line.get_linestyle() == ":"]
    assert list(front.get_ydata()) == [5.9, 5.2, 5.0]
    assert list(front.get_xdata()) == pytest.approx([1.812, 2.012, 5.012])
    (front,) = [line for line in time.lines if line.get_linestyle() == ":"]
    assert list(front.get_xdata()) == [1.0, 2.0, 3.0]
    hollow = [line for line in time.lines if line.get_markerfacecolor() == "white"]
    assert [float(line.get_ydata()[0]) for line in hollow] == [5.9]
    assert size.get_xlabel() == "memory of serving 512\ntokens, MB"


def test_the_legend_names_what_is_drawn() -> None:
    """Rows that were not timed are in no panel against time."""
    found, declared = tables()
    (_, time), (quality, *_) = chosen_axes(found, declared)
    some = replace(time, value=lambda row: None if row.name == "RTN" else time.value(row))
    (legend,) = pareto_figure(Leading(found, declared), [(some, quality)]).legends
    said = [text.get_text() for text in legend.get_texts()]
    assert "GPTQ" in said
    assert "RTN" not in said


def test_the_plot_is_a_function_of_its_rows_and_of_two_at_least() -> None:
    found, declared = tables()
    (drawn,) = pareto_plots(Leading(found, declared))
    assert drawn.name == "pareto"
    assert drawn.draw() == pareto_plots(Leading(found, declared))[0].draw()
    assert pareto_plots(Leading(found[:1], declared)) == []
