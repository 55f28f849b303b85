"""Plots of many models: drawn by several processes, in a small font, to the same bytes."""

import gc
import re
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

from harness.report import build_report, drawing, plot_style
from harness.report.frame import from_records
from harness.report.plot_fonts import FAMILY, WHOLE, font_families
from harness.report.plot_style import own_style
from harness.report.plots import Plot
from harness.report.rows import read_rows
from harness.report.tables import models_of


@pytest.fixture
def models(made_up, monkeypatch):
    """Four models with a plot each, which two processes draw."""
    monkeypatch.setattr(drawing, "usable_cores", lambda: 2)
    monkeypatch.setattr(drawing, "LEAST", 2)
    found = [made_up.perplexity(9.0)]
    records = [made_up.record(metrics=found, model=f"model-{number}") for number in range(4)]
    return models_of(read_rows(from_records(records)).rows)


def drawn(model):
    return [each.draw() for each in drawing.plots_of(model)]


def drawn_by(models, records=4):
    with drawing.drawing(len(models), records) as helpers:
        helpers.give(models)
        return helpers.collect()


def test_the_bytes_do_not_depend_on_who_draws(models, monkeypatch) -> None:
    whole, here = Plot.draw, []

    def draw(each):
        here.append(each.name)
        wait_until(lambda: not list(folders[0].glob(f"*{drawing.ASKED}")))
        return whole(each)

    folders, start = [], drawing._start
    monkeypatch.setattr(
        drawing, "_start", lambda folder: (folders.append(folder), start(folder))[1]
    )
    monkeypatch.setattr(Plot, "draw", draw)
    found = drawn_by(models)
    assert here == ["perplexity"]  # a helper has taken the others meanwhile
    assert found == {each.name: [whole(plot) for plot in drawing.plots_of(each)] for each in models}
    assert list(found) == [each.name for each in models]
    assert [plot.name for plot in found["model-3"]] == ["perplexity"]
    assert not folders[0].exists()


def wait_until(holds, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_plot_is_drawn_once(tmp_path) -> None:
    (tmp_path / f"1{drawing.ASKED}").write_bytes(b"")
    assert drawing._take(tmp_path, "1")
    assert not drawing._take(tmp_path, "1")


@pytest.mark.parametrize("takes", [False, True])
def test_what_another_process_did_not_draw_is_drawn_here(
    models, monkeypatch, caplog, takes
) -> None:
    """It fails at once, or with a plot that it has taken."""
    take = "import os; os.rename('000001-000.asked', '000001-000.taken'); " * takes
    words = [sys.executable, "-c", f"input_ = open(0).read(); {take}raise SystemExit(3)"]
    monkeypatch.setattr(
        drawing,
        "_start",
        lambda folder: subprocess.Popen(words, stdin=subprocess.PIPE, cwd=folder),
    )
    give = drawing.Helpers.give

    def and_wait(self, models):
        give(self, models)
        for process in self._processes:
            process.wait()

    monkeypatch.setattr(drawing.Helpers, "give", and_wait)
    found = drawn_by(models)
    assert list(found) == [each.name for each in models]
    assert all(found.values())
    assert "ended with 3" in caplog.text


def test_a_report_that_fails_ends_its_helpers(models, monkeypatch) -> None:
    started, start = [], drawing._start
    monkeypatch.setattr(
        drawing, "_start", lambda folder: (started.append(start(folder)), started[-1])[1]
    )
    with pytest.raises(RuntimeError, match="disk"), drawing.drawing(len(models), 4):
        raise RuntimeError("disk")
    (process,) = started
    assert process.returncode is not None


def test_few_models_are_drawn_by_one_process(models, monkeypatch) -> None:
    monkeypatch.setattr(drawing, "_start", lambda folder: pytest.fail("another process"))
    assert len(drawn_by(models[:3])) == 3


def test_drawing_leaves_the_collector_as_it_was_and_no_figures(models, monkeypatch) -> None:
    from matplotlib.figure import Figure

    monkeypatch.setattr(drawing, "COLLECTED", 1)
    gc.collect()
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    drawn_by(models[:1])
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    assert not any(isinstance(each, Figure) for each in gc.get_objects())


def test_a_pdf_has_one_small_font_a_weight(made_up, tmp_path) -> None:
    build_report([made_up.record(metrics=[made_up.perplexity(9.0)])], tmp_path)
    data = (tmp_path / "plots/perplexity.pdf").read_bytes()
    fonts = re.findall(rb"/FontName /[A-Z]{6}\+(\S+)", data)
    assert fonts.count(b"BitsweepSans") == 1
    assert set(fonts) <= {b"BitsweepSans", b"BitsweepSans-Bold"}


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_the_small_font_is_the_whole_one_of_fewer_letters(weight) -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    assert font_families() == (FAMILY, WHOLE)
    fonts = [FontProperties(family=each, weight=weight) for each in (FAMILY, WHOLE)]
    small, whole = (TextPath((0, 0), "AVATAR w4g128 ± σ ≤ 0.5 ‖ é", prop=each) for each in fonts)
    assert small.vertices.tolist() == whole.vertices.tolist()


@pytest.mark.filterwarnings("error")
def test_a_letter_that_the_small_font_lacks_is_drawn() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with own_style():
        figure = Figure()
        figure.text(0.5, 0.5, "модель")
        FigureCanvasAgg(figure).draw()


def test_what_plots_share_changes_no_byte(made_up, monkeypatch) -> None:
    """Subsets of fonts that are kept, against matplotlib's own way."""
    rows = read_rows(
        from_records(made_up.cell("none", "w16", 5.0) + made_up.cell("rtn", "w4", 9.0))
    )
    (model,) = models_of(rows.rows)
    kept = [drawn(model) for _ in range(2)]  # the second finds the subsets of the first
    monkeypatch.setattr(plot_style, "kept_subsets", nullcontext)
    monkeypatch.setitem(plot_style.STYLE, "axes.titley", None)
    assert [drawn(model)] * 2 == kept
    assert {"pareto", "perplexity", "latency"} <= {each.name for each in kept[0]}
