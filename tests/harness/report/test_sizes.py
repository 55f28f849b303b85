"""Plots against the size of models: what is drawn, and that the same rows give the same bytes."""

import itertools

from harness.report import from_records
from harness.report.rows import read_rows
from harness.report.sizes import _short, size_figure, size_plots
from harness.suites.find import declared_tables

SIZES = {"opt-125m": 125e6, "opt-1.3b": 1.3e9, "bloom-560m": 560e6, "bloom-3b": 3e9}


def rows_of(made_up, models=tuple(SIZES)):
    records = []
    for model in models:
        for method, scheme, value in (("none", "w16", 20.0), ("rtn", "w4", 30.0)):
            metric = made_up.perplexity(value, task="wikitext2")
            record = made_up.record(method, scheme, model=model, metrics=[metric])
            config = {**record.config, "parameters": SIZES[model]}
            records.append(record.model_copy(update={"config": config}))
    return read_rows(from_records(records)).rows


def drawn(rows):
    return size_plots(rows, declared_tables(rows, {}))


def test_two_sizes_are_drawn_and_one_is_not(made_up) -> None:
    (plot,) = drawn(rows_of(made_up))
    assert plot.name == "perplexity_by_size"
    assert plot.draw().files.keys() == {"pdf", "png", "svg"}
    assert plot.draw() == drawn(rows_of(made_up))[0].draw()
    assert drawn(rows_of(made_up, ["opt-125m"])) == []


def test_families_have_panels_of_their_own_and_published_figures_are_hollow(made_up) -> None:
    from harness.suites.perplexity import PLOT

    key = ("perplexity", "wikitext2", "perplexity")
    figure = size_figure(rows_of(made_up), {key: "perplexity"}, PLOT)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["full precision", "RTN w4", "published", "± standard error"]
    opt, bloom = figure.axes
    assert [panel.get_title() for panel in (opt, bloom)] == ["opt: wikitext2", "bloom: wikitext2"]
    assert opt.get_ylim() == bloom.get_ylim()
    hollow = [line for line in opt.lines if line.get_markerfacecolor() == "white"]
    assert next(list(line.get_ydata()) for line in hollow) == [27.65, 14.63]
    assert opt.get_xscale() == "log"


def test_sizes_are_written_short_and_apart(made_up) -> None:
    from harness.suites.perplexity import PLOT

    key = ("perplexity", "wikitext2", "perplexity")
    figure = size_figure(rows_of(made_up), {key: "perplexity"}, PLOT)
    figure.draw_without_rendering()
    for panel in figure.axes:
        boxes = [
            label.get_window_extent()
            for label in panel.get_xticklabels()
            if label.get_text()
            and panel.get_xlim()[0] <= label.get_position()[0]
            and label.get_position()[0] <= panel.get_xlim()[1]
        ]
        assert len(boxes) >= 1
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert [_short(value) for value in (1.25e8, 1e9, 1.75e11)] == ["125M", "1B", "175B"]
