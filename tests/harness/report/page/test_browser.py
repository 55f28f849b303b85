"""The page in a real headless Chromium: sort, filter, hover, open a cell, compare, phone, dark."""

import base64
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.records.items import make_items
from harness.records.record import Failure, Record
from harness.report.frame import from_records
from harness.report.page.write import page
from harness.report.rows import make_rows, select
from harness.report.tables import models_of
from tests.harness.report.conftest import accuracy, cell_records, make_record, perplexity

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="Chromium and its driver are needed: apt install chromium chromium-driver",
    ),
]
HOSTILE = "<img src=x onerror=document.title='attacked'>"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


def records() -> list[Record]:
    """Nine cells with figures, two of them paired, one failed, and a curve."""
    made = cell_records("none", "w16", 5.015)
    for scheme, rtn, gptq in (("w8", 5.02, 5.01), ("w4", 5.61, 5.18), ("w3", 9.42, 5.93)):
        made += cell_records("rtn", scheme, rtn) + cell_records("gptq", scheme, gptq)
    made += cell_records("rtn", "w2", 48213.4)
    fault = Failure(stage="quantization", type="SingularHessianError", message=HOSTILE)
    made.append(make_record("gptq", "w2", "quantization", error=fault))
    return [_with_units(each) for each in made]


def _with_units(record: Record) -> Record:
    """The record with the values of windows and documents, and of positions."""
    if record.suite == "perplexity":
        (metric,) = record.metrics
        shift = {"none": 0, "rtn": 30, "gptq": 2}[record.cell.method]
        losses = [float(6500 + 40 * i + shift * (i % 3 + 1)) for i in range(9)]
        items = make_items("windows", "ab" * 32, losses, [4096] * 9, exponential=True)
        points = [
            perplexity(6 - at / 1000 + shift / 50, 0.01, name="nll", task=f"text:{at}", unit="nat",
                       notes={"position": str(at)})
            for at in (128, 512, 2048)
        ]  # fmt: skip
        metrics = [metric.model_copy(update={"items": items}), *points]
        return record.model_copy(update={"metrics": metrics})
    if record.suite == "zeroshot":
        wrong = {"none": 1, "rtn": 9, "gptq": 2}[record.cell.method]
        items = make_items("documents", "cd" * 32, [float(i >= wrong) for i in range(40)])
        metric = accuracy("embedded_choice", 1 - wrong / 40, 40)
        return record.model_copy(update={"metrics": [metric.model_copy(update={"items": items})]})
    return record


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = records()
    rows = make_rows(select(from_records(found)), by_cell=True)
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(
        page(found, models_of(rows.rows), rows.notes, "A sweep", ["Made-up CPU, 2 cores"], {}),
        encoding="utf-8",
    )
    return file.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    words = (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "hide-scrollbars",
    )
    for word in (f"--{each}" for each in words):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The opened page: elements, and what JavaScript says of them."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def __call__(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def column(self, number: int) -> list[str]:
        """The texts of a column of the table of cells; 0 has the marks."""
        return self(
            "[...document.querySelectorAll('#table tbody tr')]"
            ".map((row) => row.cells[arguments[0]].textContent)",
            number,
        )

    def heads(self) -> list[str]:
        return self("[...document.querySelectorAll('#table thead th')].map((h) => h.textContent)")

    def texts(self, selector: str) -> list[str]:
        return self(
            "[...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
        )

    def choose(self, selector: str, text: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.find(selector)).select_by_visible_text(text)

    def point_at(self, plot: str, cell: str) -> None:
        """Move the pointer to the point of a cell in a plot."""
        from selenium.webdriver.common.action_chains import ActionChains

        self("document.getElementById(arguments[0]).scrollIntoView({block: 'center'})", plot)
        x, y = self(
            """(() => {
              const place = document.getElementById(arguments[0]);
              const box = place.getBoundingClientRect();
              const {xaxis, yaxis} = place._fullLayout;
              for (const trace of place.data) {
                const at = (trace.text ?? []).findIndex((text) => text.startsWith(arguments[1]));
                if (at >= 0) return [box.x + xaxis._offset + xaxis.d2p(trace.x[at]),
                                     box.y + yaxis._offset + yaxis.d2p(trace.y[at])];
              }
            })()""",
            plot,
            cell,
        )
        move = ActionChains(self.driver, duration=20)
        move.w3c_actions.pointer_action.move_to_location(int(x) - 3, int(y) - 3)
        move.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        move.perform()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Page]:
    yield _open(browser, address)
    log = [each["message"] for each in browser.get_log("browser")]
    assert not log, "nothing fails in the page, and its policy refuses nothing"


def _open(browser: Any, address: str, width: str = "desktop", dark: bool = False) -> Page:
    from selenium.webdriver.support.wait import WebDriverWait

    wide, high = WIDTHS[width]
    metrics = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": width == "phone"}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(address)
    found = Page(browser)
    WebDriverWait(browser, 30).until(lambda _: found("document.documentElement.dataset.plots"))
    return found


def test_it_shows_every_cell_and_asks_for_nothing(opened: Page) -> None:
    assert opened.texts("#counts li") == [
        "9 cells", "1 model", "3 methods", "32 records", "1 failed"
    ]  # fmt: skip
    assert opened.column(1) == ["full prec.", *["RTN", "GPTQ"] * 4]
    asked = [
        each for each in opened.driver.get_log("performance")
        if '"Network.requestWillBeSent"' in each["message"] and "http" in each["message"]
    ]  # fmt: skip
    assert not asked
    best = opened("[...document.querySelectorAll('#best tbody tr')].map((r) => "
                  "[...r.cells].slice(0, 2).map((c) => c.textContent))")  # fmt: skip
    assert best == [
        ["8", "5.010 ± 0.055 GPTQ w8"],
        ["4", "5.180 ± 0.057 GPTQ w4"],
        ["3", "5.930 ± 0.065 GPTQ w3"],
    ]  # fmt: skip


def test_a_heading_sorts_both_ways_and_missing_figures_stay_last(opened: Page) -> None:
    at = next(n for n, text in enumerate(opened.heads()) if text.startswith("embedded_eval"))
    opened.click(f"#table thead th:nth-child({at + 1})")
    first = opened.column(at)
    values = [text.split(" ±")[0] for text in first]
    assert values[:3] == ["5.010", "5.015", "5.020"]
    assert values[-3:-1] == ["9.42", "48213"], "by value, not by text"
    assert values[-1].startswith("failed")
    opened.click(f"#table thead th:nth-child({at + 1})")
    assert opened.column(at)[0].startswith("48213")
    assert opened.column(at)[-1].startswith("failed")
    assert opened("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"


def test_filters_narrow_table_and_plots(opened: Page) -> None:
    opened.choose("#by-method", "GPTQ")
    assert set(opened.column(1)) == {"GPTQ"}
    opened.find("#search").send_keys("w3")
    assert opened.column(2) == ["w3"]
    assert opened.texts("#found") == ["1 of 9 cells"]
    points = "document.getElementById('bits-plot').data.flatMap((trace) => trace.x)"
    assert opened(points) == [3.07]
    opened.find("#search").send_keys(" singular")
    assert opened.column(1) == []
    assert opened.texts("#bits-plot .empty") == ["No quantized cell that is shown has this figure."]
    opened.find("#search").clear()
    opened.find("#search").send_keys("singular")
    assert opened.column(2) == ["w2"], "causes of failures are searched too"


def test_other_figures_can_be_chosen(opened: Page) -> None:
    assert "decode" not in " ".join(opened.heads())
    opened.choose("#group", "Time and memory")
    assert "decodems/token" in opened.heads()
    opened.choose("#bits-y", "decode ms/token (Time and memory)")
    title = opened("document.getElementById('bits-plot').layout.yaxis.title.text")
    assert title == "decode ms/token"


def test_a_point_says_what_it_is_and_opens_its_cell(opened: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    opened.point_at("bits-plot", "RTN w2")
    shown = opened.texts("#bits-plot .hoverlayer text")
    assert any("RTN w2" in text and "48213 ± 530" in text for text in shown), shown
    ActionChains(opened.driver).click().perform()
    assert opened.texts("#cell h2") == ["embedded RTN w2"]


def test_the_front_is_of_cells_that_no_other_beats(opened: Page) -> None:
    opened.choose("#pareto-x", "bits per weight")
    front = "document.getElementById('pareto-plot').data.find((t) => t.name === 'Pareto front')"
    assert opened(f"{front}.x") == [2.07, 3.07, 4.08, 8.09], "16 bits are worse than 8 here"
    assert opened(f"{front}.y") == [48213.4, 5.93, 5.18, 5.01]


def test_a_row_opens_its_cell(opened: Page) -> None:
    opened.click("#table tbody tr:nth-child(5) .open")
    assert opened("document.getElementById('cell').open")
    assert opened.texts("#cell h2") == ["embedded GPTQ w4"]
    assert opened.texts("#cell pre.command")[0].startswith("bitsweep run model=")
    text = opened.texts("#cell")[0]
    for said in ("damping: 0.01", "Made-up CPU", "4.080 bits per weight", "5.180 ± 0.057"):
        assert said in text
    assert opened.texts("#layers tbody tr:nth-child(2) td")[:5] == [
        "model.decoder.layers.1.fc1", "1024 × 256", "w4", "4.08", "1.5"
    ]  # fmt: skip
    assert opened("[...document.querySelectorAll('#cell .plot')].at(-1).data[0].y") == [8, 8]
    assert opened("location.hash").startswith("#cell=")
    opened.click("#cell .close")
    assert not opened("document.getElementById('cell').open")
    assert opened("location.hash") == ""


def test_an_address_opens_its_cell(browser: Any, address: str) -> None:
    key = _open(browser, address)("CELLS[3].key.slice(0, 12)")
    assert _open(browser, f"{address}#cell={key}").texts("#cell h2") == ["embedded RTN w4"]


def test_failed_cells_have_their_causes_as_text(opened: Page) -> None:
    assert opened.texts("#failed-list h3") == ["embedded GPTQ w2"]
    assert opened.texts("#failed-list .cause p")[1] == f"SingularHessianError: {HOSTILE}"
    opened.click("#failed-list .open")
    assert opened.texts("#cell .cause p")[1].endswith(HOSTILE)
    assert opened("document.title") == "A sweep"
    assert opened("document.querySelectorAll('img').length") == 0


def test_two_cells_are_compared(opened: Page) -> None:
    for row in (4, 5):
        opened.click(f"#table tbody tr:nth-child({row}) input")
    assert opened.texts("#chosen") == ["RTN w4 and GPTQ w4"]
    opened.click("#compare")
    lines = opened("[...document.querySelectorAll('#comparison tbody tr')].map((r) => "
                   "[...r.cells].map((c) => c.textContent))")  # fmt: skip
    found = {line[0]: line for line in lines}
    choice = found["embedded_choice acc. % ↑"]
    assert choice[4:] == ["0/7", "0.016", "0.016", "significant"]
    assert choice[3].startswith("+17.5 [")
    assert found["embedded_eval ppl ↓"][7] == "significant"
    assert found["weights MB"][1:3] == ["9.40", "9.40"]
    settings = opened.texts("#comparison td.word")
    assert "method.name" in settings
    opened.click("#comparison .close")
    opened.click("#clear")
    assert opened("document.getElementById('tray').hidden")


def test_curves_are_drawn_where_records_have_them(opened: Page) -> None:
    assert opened("document.getElementById('curve-plot').data.length") == 8
    assert opened("document.getElementById('curve-plot').data[0].x") == [128, 512, 2048]


def test_a_cell_and_a_comparison_have_the_curves_beside_full_precision(opened: Page) -> None:
    def lines(place: str) -> list[str]:
        found = f"[...document.querySelectorAll('#{place} .js-plotly-plot')]"
        curve = f"{found}.find((each) => each.layout.xaxis.title.text.startsWith('position'))"
        assert opened(f"{curve}.data[0].x") == [128, 512, 2048]
        names: list[str] = opened(f"{curve}.data.map((each) => each.name)")
        return names

    index = opened("CELLS.findIndex((each) => each.method === 'RTN' && each.scheme === 'w4')")
    other = opened("CELLS.findIndex((each) => each.method === 'GPTQ' && each.scheme === 'w3')")
    opened(f"openCell({index})")
    assert lines("cell") == ["full prec. float32", "RTN w4"]
    assert "Against position" in opened.texts("#cell h3")
    opened.click("#cell .close")
    opened(f"compareCells({index}, {other})")
    assert lines("comparison") == ["full prec. float32", "RTN w4", "GPTQ w3"]
    opened.click("#comparison .close")


def test_five_hundred_cells_are_there_in_two_seconds(browser: Any, tmp_path: Path) -> None:
    some = [
        make_record(method, scheme, seed=seed, metrics=[perplexity(5.0 + seed / 100)])
        for seed in range(50)
        for method in ("rtn", "gptq")
        for scheme in ("w8", "w4", "w4g128", "w3", "w2")
    ]
    file = tmp_path / "report.html"
    rows = make_rows(select(from_records(some)), by_cell=True)
    file.write_text(page(some, models_of(rows.rows), rows.notes, "Many", [], {}), encoding="utf-8")
    found = _open(browser, file.as_uri())
    assert len(found.column(1)) == 500
    assert found("performance.getEntriesByType('navigation')[0].domInteractive") < 2000
    assert found("document.getElementById('bits-plot').data.length") == 200
    legend = found.texts("#bits-plot .legendtext")
    assert legend == ["RTN per row", "GPTQ per row", "RTN groups of 128", "GPTQ groups of 128"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", list(WIDTHS))
def test_it_is_readable(browser: Any, address: str, width: str, dark: bool, tmp_path: Path) -> None:
    found = _open(browser, address, width, dark)
    wide = WIDTHS[width][0]
    assert found("document.documentElement.scrollWidth") == wide, "tables scroll in themselves"
    picture = _screenshot(found, tmp_path / f"{width}.png")
    assert struct.unpack(">I", picture[16:20])[0] == wide
    for number in ("pareto", "bits", "curve"):
        box = found(f"document.querySelector('#{number}-plot svg').getBoundingClientRect().width")
        assert wide / 2 < box <= wide
    assert _overlapping(found) == []
    ink, ground = found("[getComputedStyle(document.body).color, "
                        "getComputedStyle(document.body).backgroundColor]")  # fmt: skip
    assert _contrast(ink, ground) > 7
    assert (_light(ground) < 0.1) == dark
    colours = found("[...Array(7).keys()].map((n) => getComputedStyle(Object.assign("
                    "document.body.appendChild(document.createElement('i')), "
                    "{style: `color: var(--c${n})`})).color)")  # fmt: skip
    assert min(_contrast(colour, ground) for colour in colours) > 3, "of lines and points"
    found("openCell(4)")
    assert found("document.getElementById('cell').scrollWidth") <= wide


def _screenshot(found: Page, file: Path) -> bytes:
    shot = found.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    file.write_bytes(base64.b64decode(shot["data"]))
    return file.read_bytes()


def _overlapping(found: Page) -> list[str]:
    """Pairs of labels of axes and legends that lie on each other, in any plot."""
    return found(
        """(() => {
          const said = [];
          for (const plot of document.querySelectorAll('.plot')) {
            const kinds = '.xtick text, .ytick text, .xtitle, .ytitle, .legendtext';
            const labels = [...plot.querySelectorAll(kinds)];
            const boxes = labels.map((each) => [each.textContent, each.getBoundingClientRect()]);
            boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
              const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
              const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
              if (x > 2 && y > 2) said.push(`${plot.id}: ${a} / ${b}`);
            }));
          }
          return said;
        })()"""
    )


def _light(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", as WCAG 2 defines it."""
    numbers = [int(each) / 255 for each in colour[4:-1].split(",")]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in numbers]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_light(one), _light(other)))
    return (high + 0.05) / (low + 0.05)
