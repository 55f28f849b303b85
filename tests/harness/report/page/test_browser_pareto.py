"""The Pareto front in a real headless Chromium: serving memory, limits, its table, a keyboard."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.records.record import Metric, Record
from harness.report.frame import from_records
from harness.report.page.write import page
from harness.report.rows import make_rows, select
from harness.report.tables import models_of
from tests.harness.report.conftest import make_record, perplexity, serving_metrics
from tests.harness.report.page import test_browser
from tests.harness.report.page.test_browser import Page, browser

pytestmark = test_browser.pytestmark
__all__ = ["browser"]  # a fixture

PLOT = "document.getElementById('pareto-plot')"
FRONT = f"{PLOT}.data.find((t) => t.name === 'Pareto front')"


def cell(
    method: str, scheme: str, ppl: float, weights: float, ms: float, kl: float
) -> list[Record]:
    nat = Metric(
        name="kl_divergence", task="embedded_eval", value=kl, unit="nat", n=9, n_unit="tokens"
    )
    found = [
        make_record(method, scheme, metrics=[perplexity(ppl)]),
        make_record(method, scheme, "latency", metrics=serving_metrics(weights, 1e6, ms, "512")),
        make_record(method, scheme, "divergence", metrics=[nat]),
    ]
    return found[: 3 if kl else 2]


def records() -> list[Record]:
    """A cache of 1000 bytes a position and a workspace of 0.5 MB; RTN w4 is beaten in memory."""
    return [
        *cell("none", "w16", 5.0, 4e6, 3.0, 0),
        *cell("rtn", "w4", 5.6, 1e6, 1.0, 0.03),
        *cell("gptq", "w4", 5.2, 1e6, 2.0, 0.01),
        *cell("gptq", "w3", 5.9, 8e5, 2.5, 0.05),
    ]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = records()
    rows = make_rows(select(from_records(found)), by_cell=True)
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(
        page(found, models_of(rows.rows), rows.notes, "A sweep", [], {}), encoding="utf-8"
    )
    return file.as_uri()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Page]:
    yield test_browser._open(browser, address)
    log = [each["message"] for each in browser.get_log("browser")]
    assert not log, "nothing fails in the page, and its policy refuses nothing"


def verdicts(found: Page) -> list[list[str]]:
    return found(
        "[...document.querySelectorAll('#front-table tbody tr')]"
        ".map((row) => [...row.cells].map((c) => c.textContent))"
    )


def fill(found: Page, selector: str, text: str) -> None:
    found.find(selector).clear()
    found.find(selector).send_keys(text)


def test_serving_memory_is_the_cost_at_first_and_follows_the_context(opened: Page) -> None:
    assert opened("document.getElementById('context').value") == "512"
    assert opened(f"{FRONT}.x") == pytest.approx([1.812, 2.012, 5.012])
    fill(opened, "#context", "100")
    assert opened(f"{FRONT}.x") == pytest.approx([1.4, 1.6, 4.6])
    title = opened(f"{PLOT}.layout.xaxis.title.text")
    assert title == "serving memory at 100 tokens, MB"
    fill(opened, "#context", "513")
    assert opened.texts("#pareto-plot .empty") == ["No cell that is shown has both figures."]


def test_dominated_cells_are_hollow_and_say_by_whom(opened: Page) -> None:
    shown = f"{PLOT}.data.filter((t) => t.text)"
    symbols = f"Object.fromEntries({shown}.map((t) => [t.name, t.marker.symbol]))"
    assert opened(symbols)["RTN per row"] == ["circle-open"]
    assert opened(symbols)["GPTQ per row"] == ["circle", "circle"]
    opened.point_at("pareto-plot", "RTN w4")
    (said,) = [text for text in opened.texts("#pareto-plot .hoverlayer text") if "RTN" in text]
    assert "dominated by GPTQ w4" in said
    assert opened.texts("#front-said") == ["On the front: 3 of 4 cells; dominated: 1."]
    assert verdicts(opened)[0] == ["GPTQ w3", "1.812", "5.9", "front"]
    assert verdicts(opened)[-1] == ["RTN w4", "2.012", "5.6", "dominated by GPTQ w4"]


def test_other_axes_have_other_fronts(opened: Page) -> None:
    opened.choose("#pareto-x", "decode ms/token (Time and memory)")
    assert opened(f"{FRONT}.x") == [1.0, 2.0, 3.0]
    opened.choose("#pareto-x", "bits per weight, whole model")
    assert opened(f"{FRONT}.x") == [6.4, 8.0, 32.0]
    opened.choose("#pareto-y", "KL full‖quant. nat, mean (Divergence)")
    assert opened(f"{FRONT}.y") == [0.05, 0.01]


def test_a_limit_leaves_out_what_does_not_fit(opened: Page) -> None:
    fill(opened, "#limit", "1.9")
    assert [line[3] for line in verdicts(opened)] == ["front", *["does not fit"] * 3]
    assert opened(f"{PLOT}.layout.shapes[0].x0") == 1.9
    opened.choose("#pareto-x", "decode ms/token (Time and memory)")
    assert [line[3] for line in verdicts(opened)] == ["front", *["does not fit"] * 3]
    assert opened(f"{PLOT}.layout.shapes.length") == 0


def test_a_keyboard_reaches_every_cell_of_the_front(opened: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    summary = opened.find("#pareto summary")
    summary.send_keys(Keys.ENTER)
    assert opened("document.querySelector('#pareto details').open")
    summary.send_keys(Keys.TAB)
    for _ in range(3):  # the box that scrolls may be a stop too
        focused = opened.driver.switch_to.active_element
        if focused.tag_name == "button":
            break
        focused.send_keys(Keys.TAB)
    assert focused.text == "GPTQ w3"
    focused.send_keys(Keys.ENTER)
    assert opened.texts("#cell h2") == ["embedded GPTQ w3"]
    assert "6.40 of the whole model" in opened.texts("#cell")[0]


@pytest.mark.parametrize("width", list(test_browser.WIDTHS))
def test_it_is_readable(browser: Any, address: str, width: str, tmp_path: Path) -> None:
    found = test_browser._open(browser, address, width)
    found("document.querySelector('#pareto details').open = true")
    wide = test_browser.WIDTHS[width][0]
    assert found("document.documentElement.scrollWidth") == wide
    assert test_browser._overlapping(found) == []
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    (tmp_path / f"{width}.png").write_bytes(base64.b64decode(shot["data"]))
