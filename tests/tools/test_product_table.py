"""The table of the product of methods: its best cells, and those that lose to rounding."""

import math

from harness.records.items import WINDOWS, make_items
from harness.records.record import Record
from harness.report.tables import to_markdown
from tests.harness.report.conftest import make_record, perplexity
from tools.product_table import LOSES, product_table
from tools.readme import product_part

LOSSES = {  # by method and scheme: nats a token of four windows
    ("rtn", "w3g64"): [4.0, 4.2, 4.1, 4.3],
    ("gptq", "w3g64"): [3.0, 3.3, 3.1, 3.4],
    ("rtn", "w4g64"): [2.0, 2.2, 2.1, 2.3],
    ("gptq", "w4g64"): [2.1, 2.4, 2.2, 2.5],
}


def records() -> list[Record]:
    found = []
    for (method, scheme), losses in LOSSES.items():
        sums = [50 * each for each in losses]
        items = make_items(WINDOWS, "same", sums, [50] * 4, exponential=True)
        value = math.exp(sum(losses) / 4)
        metric = perplexity(value, task="embedded", items=items)  # as records of the model have it
        config = {"scheme.bits": int(scheme[1]), "scheme.group_size": 64}
        found.append(make_record(method, scheme, config=config, metrics=[metric]))
    return found


def lines() -> dict[str, list[str]]:
    found = {}
    for line in to_markdown(product_table(records())).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] in ("RTN", "GPTQ"):
            found[cells[0]] = cells[1:]
    return found


def test_the_best_of_a_grid_is_bold_and_what_loses_to_rounding_is_marked() -> None:
    found = lines()
    three, four = 0, 1  # columns by bits
    assert found["GPTQ"][three].startswith("**24.5")
    assert LOSES["rtn"] not in found["GPTQ"][three]
    assert found["GPTQ"][four].endswith(LOSES["rtn"])
    assert found["RTN"][four].startswith("**8.58")
    assert not any(LOSES["rtn"] in cell for cell in found["RTN"])
    assert found["RTN"][three].endswith(LOSES["gptq"])
    assert LOSES["gptq"] not in found["RTN"][four]


def test_lines_are_in_the_order_of_their_mean_loss() -> None:
    assert list(lines()) == ["GPTQ", "RTN"]


def test_without_records_the_page_says_how_to_get_them(tmp_path) -> None:
    assert product_part(tmp_path / "none").startswith("To run: `bitsweep run")
