"""The published order of solvers beside ours: differences from GPTQ, and which rows are ours."""

import math

from harness.records.items import WINDOWS, make_items
from harness.report.tables import to_markdown
from tests.harness.report.conftest import make_record, perplexity
from tools.solver_order_table import solver_order_table

LOSSES = {  # by method and transforms: nats a token of four windows
    ("rtn", ""): [4.0, 4.2, 4.1, 4.3],
    ("gptq", ""): [3.5, 3.8, 3.6, 3.9],
    ("qronos", ""): [3.0, 3.3, 3.1, 3.4],
    ("qronos", "Hadamard"): [2.0, 2.3, 2.1, 2.4],
}


def lines() -> dict[str, list[str]]:
    records = []
    for (method, words), losses in LOSSES.items():
        mean = sum(losses) / len(losses)
        items = make_items(
            WINDOWS, "same", [50 * each for each in losses], [50] * len(losses), exponential=True
        )
        metric = perplexity(math.exp(mean), task="wikitext2", items=items)
        config = {"scheme.bits": 3, "scheme.group_size": 64, "scheme.grid": "minmax"}
        records.append(make_record(method, "w3g64", config=config, metrics=[metric], options=words))
    found = {}
    for line in to_markdown(solver_order_table(records)).splitlines():
        if line.startswith("| "):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[name.lower()] = cells
    return found


def test_published_figures_stand_as_differences_from_gptq() -> None:
    assert lines()["rtn"][:2] == ["18 (+0.54)", "20000 (+6.20)"]
    assert lines()["qronos"][:2] == ["10.12 (-0.03)", "22 (-0.61)"]
    assert lines()["gptq"][1] == "40.5 (+0.00)"


def test_ours_are_the_cells_without_options_and_say_who_loses() -> None:
    assert lines()["qronos"][3].startswith("-0.500 [")
    assert lines()["rtn"][3].endswith("loses")
    assert lines()["gptq"][3] == "–"
    assert lines()["gpfq"][2] == "to run"
