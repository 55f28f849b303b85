"""The table of methods: whom a row is compared with, and when it loses."""

import math

from harness.records.items import WINDOWS, make_items
from harness.records.record import Record
from harness.report.tables import to_markdown
from tests.harness.report.conftest import make_record, perplexity
from tools.ablation_table import ablation_table
from tools.readme import ablation_part

LOSSES = {  # by method, scheme and act-order: nats a token of four windows
    ("rtn", "w3g64", False): [4.0, 4.2, 4.1, 4.3],
    ("gptq", "w3g64", False): [3.0, 3.3, 3.1, 3.4],
    ("gptq", "w3g64", True): [3.5, 3.9, 3.6, 3.8],
    ("rtn", "w3g64_mse", False): [4.0, 4.1, 4.2, 4.3],
}


def records() -> list[Record]:
    found = []
    for (method, scheme, ordered), losses in LOSSES.items():
        mean = sum(losses) / len(losses)
        items = make_items(
            WINDOWS, "same", [50 * each for each in losses], [50] * len(losses), exponential=True
        )
        metric = perplexity(math.exp(mean), task="wikitext2", items=items)
        config = {"scheme.bits": 3, "scheme.group_size": 64, "scheme.grid": scheme[6:] or "minmax"}
        if method == "gptq":
            config["method.act_order"] = ordered
        words = "act-order, fast arithmetic" if ordered else ""
        found.append(make_record(method, scheme, config=config, metrics=[metric], options=words))
    return found


def lines() -> dict[tuple[str, str], list[str]]:
    found = {}
    for line in to_markdown(ablation_table(records())).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("method", ":---"):
            found[cells[0], cells[1]] = cells[2:]
    return found


def test_rows_are_compared_with_plain_rounding_and_plain_gptq() -> None:
    found = lines()
    assert found["GPTQ", "w3g64"][3].startswith("-0.950 [")
    assert found["GPTQ", "w3g64"][4] == "–"
    assert found["RTN", "w3g64"][3] == "–"
    ordered = found["GPTQ act-order", "w3g64"]
    assert ordered[3].startswith("-0.450 [")
    assert ordered[4].startswith("+0.500 [+0.4")


def test_a_method_that_loses_says_so() -> None:
    found = lines()
    assert found["GPTQ act-order", "w3g64"][4].endswith("], loses")
    assert found["RTN", "w3g64"][4].endswith("], loses")
    assert not found["GPTQ act-order", "w3g64"][3].endswith("loses")


def test_searched_grids_are_compared_with_those_that_are_not() -> None:
    against_rtn = lines()["RTN", "w3g64_mse"][3]
    assert against_rtn.startswith("+0.000 [")
    assert not against_rtn.endswith("loses")


def test_rows_of_several_seeds_show_their_spread() -> None:
    """The mean of two seeds, and the standard deviation over them."""
    draws = [
        make_record("gptq", "w3g64", seed=seed, metrics=[perplexity(value, task="wikitext2")])
        for seed, value in enumerate((20.0, 22.0))
    ]
    table = ablation_table(draws)
    (line,) = [line for line in to_markdown(table).splitlines() if line.startswith("| GPTQ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3].startswith("21.00")
    assert cells[4] == f"{math.sqrt(2):.2f} (2)"
    assert "the mean of 2" in to_markdown(table)
    assert {line[2] for line in lines().values()} == {"–"}


def test_the_best_of_a_bit_width_comes_first() -> None:
    assert next(iter(lines())) == ("GPTQ", "w3g64")


def test_without_records_the_page_says_so(tmp_path) -> None:
    assert ablation_part(tmp_path / "none").startswith("To run: `bitsweep run")
