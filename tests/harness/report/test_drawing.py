"""Plots of many models: drawn by several processes, in a small font, to the same bytes."""

import re
import subprocess
import sys

import pytest

from harness.report import build_report, drawing
from harness.report.frame import from_records
from harness.report.plot_fonts import FAMILY, WHOLE, font_families
from harness.report.plot_style import own_style
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


def test_the_bytes_do_not_depend_on_who_draws(models, monkeypatch) -> None:
    whole, here = drawing.draw, []
    monkeypatch.setattr(drawing, "draw", lambda each: (here.append(each.name), whole(each))[1])
    with drawing.drawing(models) as plots:
        found = plots()
    assert here == ["model-0", "model-2"]
    assert found == {each.name: whole(each) for each in models}
    assert [plot.name for plot in found["model-3"]] == ["perplexity"]


def test_what_another_process_did_not_draw_is_drawn_here(models, monkeypatch, caplog) -> None:
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(drawing, "_start", lambda file: subprocess.Popen(fails))
    with drawing.drawing(models) as plots:
        found = plots()
    assert list(found) == [each.name for each in models]
    assert all(found.values())
    assert "ended with 3" in caplog.text


def test_few_models_are_drawn_by_one_process(models, monkeypatch) -> None:
    monkeypatch.setattr(drawing, "_start", lambda file: pytest.fail("another process"))
    with drawing.drawing(models[:3]) as plots:
        assert len(plots()) == 3


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
