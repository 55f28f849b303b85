"""Published figures beside ours: what stands beside what, bands, and cells that are not there."""

import csv
from dataclasses import replace

import pytest

from harness.report import published
from harness.report.columns import Place
from harness.report.published import PublishedFigure, beside_published, published_figures
from harness.report.published_files import published_file
from harness.report.rows import Figure, Row

PLACE = Place("published_perplexity", "Perplexity of {model} beside published", 11)
KEY = ("perplexity", "wikitext2", "perplexity")


def figure(value: float, **changes) -> Figure:
    notes = "protocol: wikitext2 v1; windows: 140 of 2048"
    made = Figure(
        value=value, stderr=0.3, low=None, high=None, unit="ppl", n=1, n_unit="tokens",
        token_hash=None, higher_is_better=False, kernel=None, notes=notes,
    )  # fmt: skip
    return replace(made, **changes)


def row(method: str, scheme: str, value: float | None, **changes) -> Row:
    calibrated = method == "gptq"
    made = Row(
        model="opt-125m", method=method, method_label=method.upper(),
        full_precision=method == "none", variant="", scheme=scheme, dtype="float16",
        calibration="c4" if calibrated else None, bits=4, group_size=None, bits_per_weight=4.1,
        seeds=(0,), figures={} if value is None else {KEY: figure(value)},
        calibrated_on="c4-train 128 x 2048" if calibrated else None,
    )  # fmt: skip
    return replace(made, **changes)


def cells(*rows: Row) -> dict[tuple[str, str, str], list[str]]:
    """published, ours, delta, band and verdict by table, method and scheme."""
    table = beside_published(PLACE, "perplexity", ("perplexity",)).make("opt-125m", list(rows))
    assert table is not None
    texts = [[cell.text for cell in line] for line in table.rows]
    return {(line[0], line[2], line[3]): line[4:] for line in texts}


def test_every_figure_of_the_paper_is_there_with_its_source() -> None:
    figures = published_figures()
    own = [each for each in figures if each.source.startswith(("arXiv:2210.17323v2", "README of"))]
    assert len(own) == 757
    assert len(figures) == 757 + 74 + 9  # solvers.csv
    assert all(each.source for each in figures)
    found = {(f.table, f.model, f.task, f.method, f.scheme): f.value for f in figures}
    assert found["3", "opt-125m", "wikitext2", "gptq", "w3"] == 53.85
    assert found["12", "bloom-1b1", "c4-new", "rtn", "w4"] == 24.44
    assert found["2", "bloom-3b", "total", "gptq", ""] == 312  # 5.2 minutes


def test_names_are_those_of_models_tasks_and_schemes_of_this_project() -> None:
    from harness.config.help import options
    from quant.scheme import Scheme

    files = set(options("model"))
    for each in published_figures():
        if each.unit in ("ppl", "fraction"):
            assert each.model in files, each.model
        if each.scheme not in ("", "w16"):
            Scheme.parse(each.scheme)


def test_rounding_is_held_to_two_hundredths_and_gptq_to_its_spread() -> None:
    seeds = figure(53.0, spread=0.7, seeds=3)
    found = cells(
        row("none", "w16", 27.66),
        row("rtn", "w4", 37.40),
        row("gptq", "w4", 31.3),
        row("gptq", "w3", None, figures={KEY: seeds}, seeds=(0, 1, 2)),
    )
    assert found["3", "none", "w16"] == ["27.65", "27.66", "+0.01", "0.02", "within"]
    assert found["3", "rtn", "w4"] == ["37.28", "37.40", "+0.12", "0.02", "outside by 0.10"]
    assert found["3", "gptq", "w4"] == ["31.12", "31.30", "+0.18", "–", "–"]
    assert found["3", "gptq", "w3"] == ["53.85", "53.00 ± 0.70", "-0.85", "1.40", "within"]
    assert found["3", "rtn", "w3"][1] == published.NOT_RUN


def test_a_figure_outside_its_band_says_by_how_much_and_why() -> None:
    rows = [row("none", "w16", 27.65), row("rtn", "w4", 37.40, dtype="float32")]
    rows.append(row("rtn", "w3", 1322.0))  # the paper prints 1.3e3
    table = beside_published(PLACE, "perplexity", ("perplexity",)).make("opt-125m", rows)
    assert table is not None
    verdicts = {
        (line[2].text, line[3].text): (
            line[8].text,
            [table.footnotes[m - 1] for m in line[8].marks],
        )
        for line in table.rows
        if line[0].text == "3"
    }
    why = ["computed in float32, the source in float16"]
    assert verdicts["rtn", "w4"] == ("outside by 0.10", why)
    assert verdicts["none", "w16"] == ("within", [])
    assert verdicts["rtn", "w3"] == ("within", [])
    rows = [row("none", "w16", 27.75)]
    table = beside_published(PLACE, "perplexity", ("perplexity",)).make("opt-125m", rows)
    assert table is not None
    (mark,) = table.rows[0][8].marks
    assert table.footnotes[mark - 1].startswith("nothing is known to differ from the source")


@pytest.mark.parametrize(
    "other",
    [
        {"calibrated_on": "c4-train 16 x 512"},
        {"calibrated_on": "text 128 x 2048", "calibration": "wikitext2"},
        {"variant": "act-order"},
        {"figures": {KEY: figure(31.0, notes="windows: 140 of 512")}},
        {"figures": {KEY: figure(31.0, notes="limit: max_windows=4; windows: 4 of 2048")}},
    ],
)
def test_another_protocol_is_not_put_beside_the_papers(other) -> None:
    found = cells(row("none", "w16", 27.65), row("gptq", "w4", 31.0, **other))
    assert found["3", "gptq", "w4"][1] == published.NOT_RUN


def test_a_cell_that_failed_is_not_available_with_its_cause() -> None:
    failed = row("gptq", "w3", None, failures={"quantization": "model: needs 9 GB, 4 are free."})
    table = beside_published(PLACE, "perplexity", ("perplexity",)).make(
        "opt-125m", [row("none", "w16", 27.65), failed]
    )
    assert table is not None
    line = next(each for each in table.rows if [each[2].text, each[3].text] == ["gptq", "w3"])
    assert line[5].text == "n/a"
    assert "model: needs 9 GB" in table.footnotes[line[5].marks[0] - 1]


def test_models_without_published_figures_have_no_table() -> None:
    other = row("none", "w16", 20.0, model="embedded")
    table = beside_published(PLACE, "perplexity", ("perplexity",))
    assert table.make("embedded", [other]) is None


def test_a_model_that_cannot_be_had_is_not_available_with_the_reason() -> None:
    cause = {"perplexity": "n/a: model=opt-175b is not available: nobody has it."}
    rows = [
        row(method, scheme, None, model="opt-175b", failures=cause)
        for method, scheme in (("none", "w16"), ("rtn", "w4"))
    ]
    table = beside_published(PLACE, "perplexity", ("perplexity",)).make("opt-175b", rows)
    assert table is not None
    lines = [[cell.text for cell in line] for line in table.rows if line[0].text == "3"]
    assert [line[2:6] for line in lines] == [
        ["none", "w16", "8.34", "n/a"],
        ["rtn", "w4", "10.54", "n/a"],
    ]
    assert "model=opt-175b is not available: nobody has it." in table.footnotes


def test_accuracies_are_percents_with_two_standard_errors() -> None:
    lambada = PublishedFigure(
        "13",
        "opt-125m",
        "lambada_openai",
        "accuracy",
        "rtn",
        "",
        "w4",
        0.3,
        "fraction",
        "",
        "",
        "x",
    )
    got = figure(0.312, stderr=0.006, unit="fraction", notes="")
    assert published.band(lambada, row("rtn", "w4", None), got) == pytest.approx(0.012)
    assert published.shown(lambada, 0.012, sign=True) == "+1.20 %"


def test_the_file_is_a_plain_table() -> None:
    with published_file("gptq.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert {len(line) for line in lines} == {12}


@pytest.mark.realdata
def test_every_figure_is_that_of_the_collection_it_was_copied_from(shared) -> None:
    """Values by table and model of shared/paper/gptq.csv, which is kept outside the repository."""
    from collections import Counter

    with (shared / "paper" / "gptq.csv").open(encoding="utf-8", newline="") as file:
        theirs = list(csv.DictReader(file))
    factors = {"fraction": 100.0, "s": 1.0}
    found: Counter[tuple[str, float]] = Counter()
    for each in published_figures():
        if each.source.startswith(("arXiv:2210.17323v2", "README of")):
            factor = factors.get(each.unit, 1.0)
            found[each.table, round(factor * each.value, 3)] += each.unit != "s"
    expected: Counter[tuple[str, float]] = Counter()
    for line in theirs:
        if line["unit"] not in ("min", "h", "s") or "runtime" not in line["metric"]:
            table = line["table"].removeprefix("T")
            expected[table, round(float(line["value"]), 3)] += 1
    missing = expected - found
    assert not missing
