"""A plot that is recorded, with few artists for its axes, against matplotlib's own drawing."""

import io
import re
import zlib

import pytest
from PIL import Image

from harness.report import drawing, plot_axis, plot_record
from harness.report.frame import from_records
from harness.report.plot_style import DPI, NO_METADATA, own_style, panels_in, save
from harness.report.rows import read_rows
from harness.report.tables import models_of


def by_matplotlib(figure) -> dict[str, bytes]:
    """The files as matplotlib writes them: its ticks, and a draw for each."""
    saved = {}
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)
    for kind, metadata in NO_METADATA.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        saved[kind] = buffer.getvalue()
    return saved


def pixels(png: bytes) -> tuple[tuple[int, int], bytes]:
    """Size and pixels of an image, however it is compressed."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return image.size, image.tobytes()


def texts(svg: bytes) -> list[tuple[str, float, float]]:
    """(text, x, y) of all texts of an SVG, in points."""
    found = re.findall(
        r"<!-- (.*?) -->\s*<g[^>]* transform=\"translate\(([-\d.]+) ([-\d.]+)\)", svg.decode()
    )
    return sorted((text, float(x), float(y)) for text, x, y in found)


def linear(panel):
    panel.plot([1e6, 1e6 + 3], [1e-7, 4e-7], label="a")


def below_zero(panel):
    panel.plot([0, 1], [-3, 3])
    panel.fill_between([0, 1], [-3, 1], [-2, 2], alpha=0.2)
    panel.set(xlabel="steps", ylabel="difference", title="panel")


def logarithmic(panel):
    panel.errorbar([1, 2, 4], [3, 40, 500], yerr=[1, 2, 3], capsize=2, color="#D55E00")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_ylabel("perplexity")


def by_name(panel):
    panel.plot([0.5, 7.5], [0, 1], "o", clip_on=False)
    panel.set_yticks([0, 1, 9])  # the last one lies outside
    panel.set_yticklabels(["GPTQ  w4g128", "round to nearest", "nothing"])
    panel.set_ylim(-0.6, 1.6)
    panel.grid(visible=False, axis="y")


def without_ticks(panel):
    panel.plot([0, 1], [0, 1])
    panel.set(xticks=[], yticks=[], xlabel="nothing", ylabel="to read")


CASES = (linear, below_zero, logarithmic, by_name, without_ticks)


@pytest.fixture(scope="module")
def drawn():
    """Ours and matplotlib's files of a figure with a panel of every case."""

    def figure():
        figure, panels = panels_in(len(CASES), 0.3)
        for draw, panel in zip(CASES, panels, strict=True):
            draw(panel)
        figure.suptitle("model")
        figure.legend(handles=panels[0].lines, loc="outside lower center")
        return figure

    with own_style():
        return save(figure()), by_matplotlib(figure())


def test_pixels_are_those_of_matplotlib(drawn) -> None:
    ours, expected = drawn
    assert pixels(ours["png"]) == pixels(expected["png"])


def test_texts_are_those_of_matplotlib_within_a_point(drawn) -> None:
    ours, expected = (texts(files["svg"]) for files in drawn)
    assert len(expected) > 30
    assert [text for text, *_ in ours] == [text for text, *_ in expected]
    for (_, x, y), (_, right_x, right_y) in zip(ours, expected, strict=True):
        assert (x, y) == pytest.approx((right_x, right_y), abs=1.0)


def test_a_pdf_has_the_same_words_and_fonts(drawn) -> None:
    found = []
    for files in drawn:
        streams = re.findall(rb"stream\n(.*?)\nendstream", files["pdf"], re.DOTALL)
        pages = [zlib.decompress(each) for each in streams if each[:1] == b"x"]
        words = [word for page in pages for word in re.findall(rb"([(<\[].*?[)>\]]) TJ?j?\n", page)]
        found.append((sorted(words), re.findall(rb"/FontName /[A-Z]{6}\+(\S+)", files["pdf"])))
    assert len(found[1][0]) > 30
    assert found[0] == found[1]


def test_plots_of_a_model_have_the_pixels_of_matplotlib(made_up, monkeypatch) -> None:
    rows = read_rows(
        from_records(made_up.cell("none", "w16", 5.0) + made_up.cell("rtn", "w4", 9.0))
    )
    (model,) = models_of(rows.rows)
    ours = {each.name: each.draw().files["png"] for each in drawing.plots_of(model)}
    monkeypatch.setattr(plot_axis, "few_artists", lambda panel: None)
    monkeypatch.setattr(plot_record, "recorded", lambda figure, dpi: figure)
    assert {each.name: each.draw().files["png"] for each in drawing.plots_of(model)} == ours
    assert {"pareto", "perplexity", "latency"} <= set(ours)


def test_a_clip_of_any_form_is_scaled() -> None:
    """A circle that clips is no rectangle of the page."""
    from matplotlib.patches import Circle

    def figure():
        figure, (panel,) = panels_in(1, 0.3)
        (line,) = panel.plot([0, 1], [0, 1], linewidth=9)
        line.set_clip_path(Circle((0.5, 0.5), 0.2, transform=panel.transData))
        return figure

    with own_style():
        ours, expected = save(figure()), by_matplotlib(figure())
    assert pixels(ours["png"]) == pixels(expected["png"])
    mine, right = clip_of(ours["svg"]), clip_of(expected["svg"])
    assert len(right) > 40
    assert mine == pytest.approx(right, abs=1e-3)


def clip_of(svg: bytes) -> list[float]:
    """The numbers of the one path of an SVG that clips."""
    found = re.findall(r"<clipPath[^>]*>\s*<path d=\"(.*?)\"", svg.decode(), re.DOTALL)
    (path,) = found
    return [float(each) for each in re.findall(r"-?[\d.]+", path)]
