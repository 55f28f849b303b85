"""The page without a browser: what it holds, where from, and that it is made of records alone."""

import json
from collections import Counter
from html.parser import HTMLParser
from importlib import resources
from types import SimpleNamespace
from typing import Any

import pytest

from harness.paired.comparison import adjusted, compare
from harness.records.items import make_items
from harness.records.record import Failure, Metric, Record
from harness.report import from_records
from harness.report.differences import difference_text, flips_text, p_text
from harness.report.page import pairs
from harness.report.page.write import content, page
from harness.report.rows import make_rows, select
from harness.report.tables import models_of

HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028'\""


class Elements(HTMLParser):
    """Counts the elements of a page, and keeps the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: dict[str, str] = {}
        self._id = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._id = dict(attrs).get("id") or "" if tag == "script" else self._id

    def handle_endtag(self, tag: str) -> None:
        self._id = ""

    def handle_data(self, data: str) -> None:
        if self._id:
            self.scripts[self._id] = data


def made(records: list[Record]) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = make_rows(select(from_records(records)), by_cell=True)
    return content(records, models_of(rows.rows), rows.notes, ["A machine"], {})


def written(records: list[Record], title: str = "A sweep") -> str:
    """The page without plotly's 5 MB, which parsers of tests need not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plotly.offline.get_plotlyjs", lambda: "PLOTLY")
        return whole_page(records, title)


def whole_page(records: list[Record], title: str = "A sweep") -> str:
    rows = make_rows(select(from_records(records)), by_cell=True)
    return page(records, models_of(rows.rows), rows.notes, title, ["A machine"], {})


def cell_of(shown: dict[str, Any], method: str, scheme: str) -> dict[str, Any]:
    return next(c for c in shown["cells"] if (c["method"], c["scheme"]) == (method, scheme))


def figure(shown: dict[str, Any], cell: dict[str, Any], header: str) -> list[Any]:
    at = next(i for i, column in enumerate(shown["columns"]) if column["header"] == header)
    return cell["figures"][at]


def with_items(made_up: SimpleNamespace, method: str, scheme: str, shift: int) -> list[Record]:
    """A cell whose figures come with the values of 12 windows and 40 documents."""
    losses = [4096.0 * (1.6 + 0.05 * (i % 5)) + shift * (20 + i) for i in range(12)]
    answers = [float((i * 7 + shift * (i % 3 == 0)) % 4 > 0) for i in range(40)]
    windows = make_items("windows", "ab" * 32, losses, [4096] * 12, exponential=True)
    documents = make_items("documents", "cd" * 32, answers)
    shared = sum(answers) / 40
    accuracy = made_up.accuracy("embedded_choice", shared, 40).model_copy(
        update={"items": documents}
    )
    value = 2.718281828459045 ** (sum(losses) / (12 * 4096))
    return [
        made_up.record(method, scheme, metrics=[made_up.perplexity(value, items=windows)]),
        made_up.record(method, scheme, "zeroshot", metrics=[accuracy]),
    ]


def test_the_same_records_give_the_same_page(sweep: list[Record]) -> None:
    assert written(sweep) == written(list(reversed(sweep)))


def test_the_page_needs_nothing_from_elsewhere(sweep: list[Record]) -> None:
    found = Elements(written(sweep))
    assert not [each for each in found.attributes if each[1] in ("src", "srcset", "data", "action")]
    assert not found.count["link"] + found.count["img"] + found.count["iframe"]
    assert [value for tag, name, value in found.attributes if name == "href"] == []
    policy = next(value for _, name, value in found.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none';"), "the browser refuses every request"
    assert "http" not in policy
    own = "".join(
        each.read_text() for each in resources.files("harness.report.page").iterdir()
        if each.name.endswith((".js", ".css", ".html"))
    )  # fmt: skip
    for word in ("http:", "https:", "fetch(", "XMLHttpRequest", "innerHTML", "outerHTML", "eval("):
        assert word not in own


def test_the_library_is_in_the_page(sweep: list[Record]) -> None:
    from plotly.offline import get_plotlyjs

    text, library = whole_page(sweep[:1]), get_plotlyjs()
    start = text.index("/**", text.index('id="library"'))
    assert hash(text[start : start + len(library)]) == hash(library)
    assert "</script" not in library


def test_cells_have_their_names_and_figures(sweep: list[Record]) -> None:
    shown, _ = made(sweep)
    assert len(shown["cells"]) == len({record.cell_key for record in sweep}) == 11
    assert shown["records"] == len(sweep)
    cell = cell_of(shown, "GPTQ", "w4g128")
    assert (cell["model"], cell["seed"], cell["bits"], cell["status"]) == (
        "embedded",
        0,
        4.16,
        "ok",
    )
    assert cell["kind"] == "groups of 128"
    text, value, stderr, best, _ = figure(shown, cell, "embedded_eval")
    assert (text, value, best) == ("5.110 ± 0.056", 5.11, 1)
    assert stderr == pytest.approx(5.11 * 0.011)
    assert figure(shown, cell_of(shown, "RTN", "w4g128"), "embedded_eval")[3] == 0
    assert [group["name"] for group in shown["groups"]] == ["Accuracy", "Time and memory"]
    units = {column["header"]: column["unit"] for column in shown["columns"]}
    assert (units["embedded_eval"], units["weights"]) == ("ppl", "bytes")


def test_failures_keep_their_causes(sweep: list[Record]) -> None:
    shown, _ = made(sweep)
    failed = cell_of(shown, "GPTQ", "w2")
    assert failed["status"] == "failed"
    (stage, cause) = failed["failures"][0]
    assert stage == "quantization"
    assert cause.startswith("quantization: SingularHessianError: model.decoder.layers.3.fc2")
    half = cell_of(shown, "RTN", "w3")  # one suite failed, the others have figures
    assert [suite for suite, _ in half["failures"]] == ["zeroshot"]
    assert figure(shown, half, "embedded_eval")[1] == 9.42
    assert figure(shown, half, "embedded_choice")[0] == "failed"
    assert sum(cell["status"] == "failed" for cell in shown["cells"]) == 2


def test_what_cannot_be_had_is_no_failure(made_up: SimpleNamespace) -> None:
    gated = Failure(stage="perplexity", type="Unavailable", message="it is gated")
    shown, _ = made([made_up.record(error=gated)])
    assert shown["cells"][0]["status"] == "n/a"
    assert shown["cells"][0]["failures"] == [["perplexity", "n/a: it is gated"]]


def test_every_seed_has_its_own_cell(made_up: SimpleNamespace) -> None:
    records = [
        r
        for seed, value in ((0, 5.1), (1, 5.3))
        for r in made_up.cell("gptq", "w4", value, seed=seed)
    ]
    shown, _ = made(records)
    assert [cell["seed"] for cell in shown["cells"]] == [0, 1]
    assert [figure(shown, cell, "embedded_eval")[1] for cell in shown["cells"]] == [5.1, 5.3]


def test_a_cell_opens_with_all_that_is_known(sweep: list[Record]) -> None:
    shown, opened = made(sweep)
    index = shown["cells"].index(cell_of(shown, "GPTQ", "w3"))
    cell, parts = opened["cells"][index], opened["parts"]
    assert {name: parts[at] for name, at in cell["config"].items()}["method"]["damping"] == 0.01
    shared = parts[cell["layers"]["shared"]]
    assert shared["name"] == [f"model.decoder.layers.{block}.fc1" for block in range(2)]
    assert shared["shape"] == ["1024 × 256"] * 2
    assert (cell["layers"]["loss"], cell["layers"]["error"]) == ([0.5, 1.5], [0.08, 0.08])
    assert cell["command"].startswith("bitsweep run model=")
    assert " method=gptq " in cell["command"]
    stages = [each["suite"] for each in cell["records"]]
    assert sorted(stages) == ["latency", "perplexity", "quantization", "zeroshot"]
    assert parts[cell["records"][0]["environment"]]["machine"]["cpu"] == "Made-up CPU"
    plain = opened["cells"][shown["cells"].index(cell_of(shown, "full prec.", "float32"))]
    assert plain["layers"] is None
    environments = {each["environment"] for c in opened["cells"] for each in c["records"]}
    assert len(environments) == 1, "what cells share is held once"


def test_text_from_records_stays_text(made_up: SimpleNamespace) -> None:
    error = Failure(stage="perplexity", type="E", message=HOSTILE)
    changes = {"config": {"model.name": HOSTILE}, "model": HOSTILE, "label": HOSTILE}
    hostile = [made_up.record(error=error, **changes), *made_up.cell("gptq", "w4", 5.2, **changes)]
    plain = [made_up.record(error=error), *made_up.cell("gptq", "w4", 5.2)]
    text = written(hostile, HOSTILE)
    found, usual = Elements(text), Elements(written(plain))
    assert found.count == usual.count, "no text became an element"
    assert "<title>&lt;/script&gt;&lt;img" in text
    data = json.loads(found.scripts["data"])
    assert {cell["model"] for cell in data["cells"]} == {HOSTILE}
    assert any(HOSTILE in cause for cell in data["cells"] for _, cause in cell["failures"])
    opened = json.loads(found.scripts["details"])
    names = [part.get("name") for part in opened["parts"] if isinstance(part, dict)]
    assert HOSTILE in names


def test_pairs_are_compared_as_the_verb_compares_them(made_up: SimpleNamespace) -> None:
    cells = [("none", "w16", 0), ("rtn", "w4", 3), ("gptq", "w4", 1)]
    records = [
        r for method, scheme, shift in cells for r in with_items(made_up, method, scheme, shift)
    ]
    shown, _ = made(records)
    assert shown["compared"]["rule"] == "all pairs of one model"
    assert sorted(shown["compared"]["pairs"]) == ["0,1", "0,2", "1,2"]
    rows = make_rows(select(from_records(records)), by_cell=True).rows
    ours = shown["compared"]["pairs"]["1,2"]
    keys = [
        ("perplexity", "embedded_eval", "perplexity"),
        ("zeroshot", "embedded_choice", "accuracy"),
    ]
    expected = adjusted(
        [compare(rows[1].figures[key].items, [rows[2].figures[key].items])[0] for key in keys]
    )
    for said, comparison, unit in zip(ours, expected, ("ppl", "fraction"), strict=True):
        assert shown["columns"][said[0]]["unit"] == unit
        assert said[1:] == [
            difference_text(comparison, unit), flips_text(comparison), p_text(comparison.p),
            p_text(comparison.adjusted), int(comparison.significant),
        ]  # fmt: skip
    assert ours[0][5] == 1


def test_where_pairs_are_too_many_the_page_says_which_it_has(
    made_up: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [("none", "w16"), ("rtn", "w4"), ("gptq", "w4"), ("rtn", "w3")]
    records = [r for at, each in enumerate(cells) for r in with_items(made_up, *each, at)]
    monkeypatch.setattr(pairs, "MOST", 8)  # 6 pairs of two figures are 12
    shown, _ = made(records)
    assert shown["compared"]["rule"] == "pairs of one bit width, and all with full precision"
    assert sorted(shown["compared"]["pairs"]) == ["0,1", "0,2", "0,3", "1,2"]
    monkeypatch.setattr(pairs, "MOST", 6)
    shown, _ = made(records)
    assert shown["compared"]["rule"] == "pairs with full precision"
    assert sorted(shown["compared"]["pairs"]) == ["0,1", "0,2", "0,3"]
    other = with_items(made_up, "none", "w16", 4)
    for each in other:  # full precision in another cell, which all would be compared with as well
        each.config["model"]["dtype"] = "bfloat16"
    again = [each.model_copy(update={"cell_key": "f" * 64}) for each in other]
    monkeypatch.setattr(pairs, "MOST", 12)
    shown, _ = made([*records, *again])
    assert shown["compared"]["rule"] == "each cell with the first of its model in full precision"
    assert sorted(shown["compared"]["pairs"]) == ["0,1", "0,2", "0,3", "0,4"]


def test_records_without_values_of_units_are_not_compared(sweep: list[Record]) -> None:
    shown, _ = made(sweep)
    assert shown["compared"]["pairs"] == {}


def test_curves_are_there_where_records_hold_positions(
    sweep: list[Record], made_up: SimpleNamespace
) -> None:
    assert made(sweep)[0]["curves"] == []

    def point(at: int, value: float) -> Metric:
        return made_up.perplexity(
            value, 0.1, name="nll", task=f"text:{at}", unit="nat", notes={"position": str(at)}
        )

    metrics = [made_up.perplexity(5.0), point(512, 2.9), point(64, 3.5)]
    (curve,) = made([made_up.record(metrics=metrics)])[0]["curves"]
    assert (curve["name"], curve["unit"]) == ("text: nll", "nat")
    assert curve["cells"] == {"0": [[64.0, 3.5, 0.1], [512.0, 2.9, 0.1]]}
    declared = point(64, 3.5).model_copy(update={"name": "nll_by_position"})
    (curve,) = made([made_up.record(metrics=[*metrics[:1], declared])])[0]["curves"]
    assert (curve["name"], curve["unit"]) == ("text: loss, nat a token", "nat")
