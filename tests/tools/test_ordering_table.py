"""The README's table of the paper's order: differences by seed, and Student's interval by hand."""

import math

import pytest

from harness.records.record import Record
from harness.report.tables import to_markdown
from tests.harness.report.conftest import make_record, perplexity
from tools.ordering_table import difference, ordering_table
from tools.readme import ordering_part

LOSSES = {  # by method, scheme and act-order: nats a token of three seeds
    ("rtn", "w3", False): [6.0],
    ("gptq", "w3", False): [4.0, 4.1, 4.3],
    ("gptq", "w3", True): [4.1, 4.0, 4.2],
}


def records() -> list[Record]:
    found = []
    for (method, scheme, ordered), losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            metric = perplexity(loss, name="nll", task="wikitext2", unit="nat")
            config = {"method.act_order": ordered}
            found.append(make_record(method, scheme, seed=seed, config=config, metrics=[metric]))
    return found


def test_the_interval_is_students() -> None:
    one, other = {0: 4.0, 1: 4.1, 2: 4.3}, {0: 6.0}
    found = difference(one, other)
    assert found is not None
    error = math.sqrt(((0.4 / 3) ** 2 + (0.1 / 3) ** 2 + (0.5 / 3) ** 2) / 2 / 3)
    assert found.mean == pytest.approx(4.4 / 3 + 8 / 3 - 6)
    assert found.high - found.mean == pytest.approx(4.302653 * error)  # two degrees of freedom
    assert (found.seeds, found.verdict) == (3, "as in the paper")
    assert difference({0: 4.0}, other) is None


def test_a_statement_has_its_difference_and_a_verdict() -> None:
    lines = to_markdown(ordering_table(records())).splitlines()
    rows = {tuple(line.split(" | ")[:2]): line.split(" | ")[2:] for line in lines if "GPTQ" in line}
    below = rows["| GPTQ w3", "RTN w3"]
    assert below[:3] == ["62.4", "403.4", "-1.867"]
    assert below[-1] == "as in the paper |"
    assert rows["| GPTQ act-order w3", "GPTQ w3"][-1] == "not shown |"
    assert rows["| GPTQ w3g64", "RTN w3g64"] == ["to run"] * 4 + ["to run |"]


def test_the_other_way_is_said() -> None:
    found = difference({0: 2.0, 1: 2.1}, {0: 1.0, 1: 1.11})
    assert found is not None
    assert found.verdict == "the other way"


def test_without_records_the_page_says_so(tmp_path) -> None:
    assert ordering_part(tmp_path / "none").startswith("To run: `bitsweep run")
