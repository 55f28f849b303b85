"""The report as files: complete, the same bytes every time, nothing half-written."""

import errno
import itertools
import os
import re
import struct

import matplotlib
import pytest

from harness import cli
from harness.errors import StoreError
from harness.records.record import Metric
from harness.report import build_report
from harness.report.assemble import columns_in_order
from harness.report.build import provenance
from harness.report.column_plots import plots_of_columns
from harness.report.curve_plot import curve_plots, curves_figure
from harness.report.curves import panels_of
from harness.report.frame import from_records
from harness.report.leading import Leading
from harness.report.plot_style import own_style
from harness.report.plots import bits_figure, line_of
from harness.report.rows import read_rows
from harness.suites import zeroshot
from harness.suites.find import declared_tables
from harness.suites.perplexity import CURVE, PLOT


def contents(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_files_and_their_bytes(sweep, tmp_path) -> None:
    paths = build_report(sweep, tmp_path / "a", title="A sweep")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):  # a user's own style
        build_report(list(reversed(sweep)), tmp_path / "b", title="A sweep")
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    names = ("perplexity", "accuracy", "latency", "pareto")
    plots = [f"plots/{n}.{k}" for n in names for k in ("pdf", "png", "svg")]
    tables = [f"tables/{n}.{k}" for n in ("accuracy", "cost", "pareto") for k in ("csv", "tex")]
    assert sorted(first) == sorted(["summary.md", "report.html", "metrics.csv", *plots, *tables])
    assert paths[0] == tmp_path / "a" / "summary.md"
    assert first == second
    for name, data in first.items():
        if name.endswith("png"):
            width, height = struct.unpack(">II", data[16:24])
            assert width > 600
            assert height > 400
            assert b"Matplotlib" not in data
        if name.endswith("svg"):
            assert b"<dc:date>" not in data


def test_summary_links_what_was_written_and_says_where_it_was_made(sweep, tmp_path) -> None:
    some = [record for record in sweep if record.suite == "perplexity"]
    build_report(some, tmp_path, title="A sweep")
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# A sweep\n")
    assert "](plots/perplexity.png)" in text
    assert "Made-up CPU, 2 cores, Python 3.11.7, torch 2.13.0" in text
    assert "commit 0123456789ab" in text


def test_the_instruction_set_stands_beside_the_processor(made_up) -> None:
    environment = {"machine": {"cpu": "A CPU", "cores": 2}, "computing": {"torch": "AVX2"}}
    assert provenance([made_up.record(environment=environment)]) == ["A CPU (AVX2), 2 cores"]


def test_several_models_have_files_of_their_own(made_up, tmp_path) -> None:
    own = [made_up.cell("rtn", "w4", 5.5)[0], made_up.cell("rtn", "w4", 6.5, model="a/b")[0]]
    build_report(own, tmp_path)
    names = {
        f"{name}-{model}" for name in ("accuracy", "perplexity") for model in ("a_b", "embedded")
    }
    found = {path.stem for path in tmp_path.rglob("*-*")}
    assert found == names


def test_no_records_are_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="no records"):
        build_report([], tmp_path)


def test_a_full_disk_leaves_the_earlier_report(sweep, tmp_path, monkeypatch) -> None:
    build_report(sweep[:1], tmp_path)  # full precision alone: no plots to draw
    before = contents(tmp_path)

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="disk is full"):
        build_report(sweep[:2], tmp_path)
    assert contents(tmp_path) == before


def rows_of(records):
    return read_rows(from_records(records)).rows


def drawn(records) -> set[str]:
    rows = rows_of(records)
    return {plot.name for plot in plots_of_columns(Leading(rows, declared_tables(rows, {})))}


def test_curves_have_a_panel_a_task_and_a_line_a_row(made_up) -> None:
    def points(shift: float, tasks: tuple[str, ...]) -> list[Metric]:
        return [
            made_up.perplexity(shift + 1 / at, 0.1, name="nll_by_position", unit="nat",
                               task=f"{task}:{at}", notes={"position": str(at)})
            for task in tasks for at in (8, 64, 512)
        ]  # fmt: skip

    both = ("one", "other")
    records = [
        made_up.record("none", "w16", metrics=[made_up.perplexity(5.0), *points(2, both)]),
        made_up.record("rtn", "w4", metrics=[made_up.perplexity(5.0), *points(3, both)]),
        made_up.record("rtn", "w3", metrics=[made_up.perplexity(5.0), *points(4, ("one",))]),
    ]
    rows = rows_of(records)
    (plot,) = curve_plots(Leading(rows, declared_tables(rows, {})))
    assert plot.name == "loss_by_position"
    without = rows_of([made_up.record(metrics=[made_up.perplexity(5.0)])])
    assert curve_plots(Leading(without, declared_tables(without, {}))) == []
    keys = panels_of(rows, "perplexity", CURVE)
    assert keys == [("perplexity", task, "nll_by_position") for task in both]
    one, other = curves_figure(rows, keys, CURVE).axes
    assert [panel.get_title() for panel in (one, other)] == list(both)
    lines = [line.get_xydata().tolist() for line in one.lines]
    assert lines == [[[at, shift + 1 / at] for at in (8, 64, 512)] for shift in (2, 3, 4)]
    assert len(other.lines) == 2
    (full, four, three) = one.lines
    assert four.get_color() == three.get_color() != full.get_color()
    assert four.get_linestyle() != three.get_linestyle()
    bands = [each.get_paths()[0].get_extents() for each in one.collections]
    assert (bands[0].y0, bands[0].y1) == pytest.approx((2 + 1 / 512 - 0.1, 2 + 1 / 8 + 0.1))


def test_panels_hold_the_figures_with_their_error_bars(sweep) -> None:
    rows = rows_of(sweep)
    key = ("perplexity", "embedded_eval", "perplexity")
    (panel,) = bits_figure(rows, {key: "perplexity"}, PLOT).axes
    bars = {
        container.lines[0].get_xydata()[0][0]: container
        for container in panel.containers
        if len(container.lines[0].get_xydata())
    }
    lines = sorted(tuple(map(tuple, c.lines[0].get_xydata())) for c in panel.containers)
    assert ((3.07, 5.93), (4.08, 5.18), (8.09, 5.019)) in lines  # GPTQ, one grid a row
    assert ((3.07, 9.42), (4.08, 5.61), (8.09, 5.022)) in lines  # RTN: w2 is off the scale
    segments = bars[3.07].lines[2][0].get_segments()
    assert len(segments) == 3
    assert any("48,213" in text.get_text() for text in panel.texts)
    assert panel.get_yscale() == "log"
    assert panel.get_ylim()[1] < 60


def test_full_precision_alone_is_no_plot_against_bits(made_up) -> None:
    assert drawn(made_up.cell("none", "w16", 5.0)) == {"latency"}


def test_many_methods_schemes_and_tasks_are_drawn(made_up) -> None:
    records = []
    for scheme in ("w8", "w4", "w4g128", "w3"):
        for act_order in (False, True):
            config = {"method.act_order": act_order}
            records += made_up.cell("gptq", scheme, 5.5, config=config)[1:]
    assert drawn(records) == {"accuracy", "latency"}


def test_a_report_that_cannot_be_written_asks_for_another_folder(tmp_path, made_up, capsys) -> None:
    cell = tmp_path / "cells" / "a"
    cell.mkdir(parents=True)
    (cell / "perplexity.json").write_text(
        made_up.record(metrics=[made_up.perplexity(5.0)]).model_dump_json()
    )
    (tmp_path / "reports").write_text("in the way")
    assert cli.main(["report", str(tmp_path)]) == cli.IMPOSSIBLE
    assert "--out FOLDER" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "x")]) == cli.OK


def test_a_report_leaves_no_tables_of_the_one_before(tmp_path, made_up) -> None:
    cell = tmp_path / "cells" / "a"
    cell.mkdir(parents=True)
    record = made_up.record(metrics=[made_up.perplexity(5.0)])
    (cell / "perplexity.json").write_text(record.model_dump_json())
    for folder, kept in ((tmp_path / "reports" / "all", False), (tmp_path / "mine", True)):
        for name in ("tables/toy.csv", "plots/toy.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("old")
        assert cli.main(["report", str(tmp_path), *(["--out", str(folder)] if kept else [])]) == 0
        assert (folder / "tables/accuracy.csv").exists()
        assert (folder / "tables/toy.csv").exists() is kept
        assert (folder / "plots/toy.png").exists() is kept


def test_a_plot_fits_the_page_of_a_paper_and_its_pdf_holds_its_letters(sweep, tmp_path) -> None:
    build_report(sweep, tmp_path)
    for file in (tmp_path / "plots").glob("*.pdf"):
        data = file.read_bytes()
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", data)
        assert float(box[1]) <= 6.95 * 72  # the width of a text
        assert float(box[2]) <= 9 * 72
        assert b"/Type3" not in data
        assert b"CreationDate" not in data


def boxes_of(texts) -> list:
    return [text.get_window_extent() for text in texts if text.get_text()]


def apart(boxes) -> bool:
    return not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_eight_panels_are_filled_named_and_apart(made_up) -> None:
    metrics = []
    for task in ("arc_challenge", "arc_easy", "lambada_openai", "piqa"):
        plain = made_up.accuracy(task, 0.4)
        metrics += [plain, plain.model_copy(update={"name": "acc_norm", "value": 0.5})]
    target = made_up.perplexity(9.0, task="lambada_openai", name="target_perplexity")
    records = [
        made_up.record(method, scheme, "zeroshot", metrics=[*metrics, target])
        for method, scheme in (("none", "w16"), ("rtn", "w4"), ("gptq", "w4"), ("rtn", "w3"))
    ]
    rows = rows_of(records)
    names = {
        each.key: each.declared.named
        for each in columns_in_order(rows, declared_tables(rows, {}))
        if each.key[2] in ("accuracy", "acc_norm")
    }
    with own_style():
        figure = bits_figure(rows, names, zeroshot.PLOT)
        figure.draw_without_rendering()
        assert len(figure.axes) == 8
        assert all(panel.lines for panel in figure.axes)
        labels = {panel.get_ylabel() for panel in figure.axes}
        assert labels == {"accuracy, %", "length-normalized accuracy, %"}
        words = [text for panel in figure.axes for text in (panel.title, panel.yaxis.label)]
        words += [panel.xaxis.label for panel in figure.axes]
        (legend,) = figure.legends
        assert apart([*boxes_of(words), legend.get_window_extent()])
        assert figure.bbox.contains(*legend.get_window_extent().p0)
        assert figure.bbox.contains(*legend.get_window_extent().p1)
    assert drawn(records) == {"accuracy", "target_perplexity"}


def test_many_long_names_are_in_the_legend_and_no_two_lines_look_alike(made_up) -> None:
    records = []
    for number in range(12):
        options = f"act-order, static groups, true-sequential, order {number}"
        made = {"config": {"method.damping": 0.01 + number / 100}, "options": options}
        records.append(
            made_up.record("gptq", "w4", metrics=[made_up.perplexity(5.0 + number)], **made)
        )
    rows = rows_of(records)
    key = ("perplexity", "embedded_eval", "perplexity")
    with own_style():
        figure = bits_figure(rows, {key: "perplexity"}, PLOT)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert figure.bbox.contains(*box.p0)
        assert figure.bbox.contains(*box.p1)
        assert apart([box, *boxes_of([figure.axes[0].xaxis.label])])
    said = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert {row.label for row in rows} <= set(said)
    assert len({str(line_of(row.label, rows)) for row in rows}) == 12


def test_a_text_named_as_its_model_is_no_double_title(made_up) -> None:
    def titles(task: str) -> list[str]:
        metric = made_up.perplexity(5.0, task=task)
        rows = rows_of([made_up.record("rtn", "w4", metrics=[metric])])
        figure = bits_figure(rows, {("perplexity", task, "perplexity"): "perplexity"}, PLOT)
        return [figure.get_suptitle(), figure.axes[0].get_title()]

    assert titles("embedded") == ["", "embedded"]
    assert titles("wikitext2") == ["embedded", "wikitext2"]


def test_values_off_the_scale_stand_below_each_other(made_up) -> None:
    records = [made_up.record("none", "w16", metrics=[made_up.perplexity(5.0)])]
    for method, value in (("rtn", 866260.0), ("gptq", 8229.0)):
        records.append(made_up.record(method, "w2", metrics=[made_up.perplexity(value)]))
    records.append(made_up.record("rtn", "w4", metrics=[made_up.perplexity(6.0)]))
    key = ("perplexity", "embedded_eval", "perplexity")
    with own_style():
        figure = bits_figure(rows_of(records), {key: "perplexity"}, PLOT)
        figure.draw_without_rendering()
        texts = [text for text in figure.axes[0].texts if text.get_text()]
        assert {text.get_text() for text in texts} == {"866,260", "8,229"}
        assert apart(boxes_of(texts))


def test_published_figures_are_hollow(made_up) -> None:
    def marks(model: str) -> list[float]:
        found = [
            made_up.record(m, s, metrics=[made_up.perplexity(30.0, task="wikitext2")], model=model)
            for m, s in (("none", "w16"), ("rtn", "w4"))
        ]
        key = ("perplexity", "wikitext2", "perplexity")
        figure = bits_figure(rows_of(found), {key: "perplexity"}, PLOT)
        named = {text.get_text() for text in figure.legends[0].get_texts()}
        hollow = [x for x in figure.axes[0].lines if x.get_markerfacecolor() == "white"]
        assert ("published" in named) is bool(hollow)
        return [float(line.get_ydata()[0]) for line in hollow]

    assert marks("opt-125m") == [27.65, 37.28]
    assert marks("unheard-of") == []
