"""Marks of what may be chance, and the table of differences, against counts by hand."""

import csv
import io
from collections.abc import Sequence

import pytest

from harness.paired.exact import holm, mcnemar
from harness.records.record import Record
from harness.report import from_records, summary_tables
from harness.report.latex import to_latex
from harness.report.render import to_csv, to_markdown
from harness.report.table import Table
from tests.harness.paired.conftest import answers, both, figure, losses, record

LOST = {("rtn", "w4"): (3, 95), ("rtn", "w3"): range(20), ("gptq", "w4"): range(7)}


def tables(records: Sequence[Record]) -> dict[str, Table]:
    return {table.name: table for table in summary_tables(from_records(records))}


def zeroshot(method: str, scheme: str, lost: Sequence[int], **more: object) -> Record:
    metric = figure("accuracy", "choice", answers(lost))
    return record(method, scheme, [metric], "zeroshot", **more)  # type: ignore[arg-type]


def sweep() -> list[Record]:
    cells = (zeroshot(method, scheme, lost) for (method, scheme), lost in LOST.items())
    return [zeroshot("none", "w16", ()), *cells]


def marked(table: Table) -> dict[tuple[str, str], list[str]]:
    return {
        (row[0].text, row[1].text): [table.footnotes[mark - 1] for mark in row[3].marks]
        for row in table.rows
    }


def test_what_is_not_significant_is_marked_and_the_rest_is_not() -> None:
    """Of 2, 20 and 7 flips, the last with p = 2/128, twice that after Holm."""
    values = holm([mcnemar(1, 1), mcnemar(20, 0), mcnemar(7, 0)])
    assert [value < 0.05 for value in values] == [False, True, True]
    said = "not significantly different from full precision (p ≥ 0.05 after Holm's correction"
    found = marked(tables(sweep())["accuracy"])
    assert found[("full prec.", "float32")] == []
    assert found[("RTN", "w4")] == [f"{said} over 3 comparisons)"]
    assert found[("RTN", "w3")] == found[("GPTQ", "w4")] == []


def test_the_correction_counts_every_comparison_of_the_table() -> None:
    """Seven flips are significant among three comparisons (2 · 2/128), not among seven (6 ·)."""
    more = [*sweep(), zeroshot("gptq", "w3", range(1)), zeroshot("gptq", "w3", (), options="x")]
    more += [zeroshot("rtn", "w3", (), options=name) for name in ("y", "z")]
    found = marked(tables(more)["accuracy"])
    assert "over 7 comparisons" in found[("GPTQ", "w4")][0]
    assert found[("RTN", "w3")] == []


def test_perplexities_are_tested_with_the_rest() -> None:
    records = [*both("none", "w16", 0.0, ()), *both("rtn", "w4", 0.2, ())]
    records += both("gptq", "w4", 0.0001, range(12))
    table = tables(records)["accuracy_differences"]
    shown = {row[0].text: row for row in table.rows}
    assert set(shown) == {"GPTQ", "RTN"}
    assert table.columns[3].detail == "Δ ppl"
    assert table.columns[4].detail == "Δ acc., points"
    assert shown["RTN"][3].marks == ()  # ten nats a window, with noise of 0.2
    assert shown["GPTQ"][3].marks == (1,)
    assert shown["GPTQ"][4].text.startswith("-12.0 [")
    assert [shown[name][5].text for name in ("RTN", "GPTQ")] == ["0/0", "12/0"]


def test_the_csv_has_a_line_for_each_comparison() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(tables(sweep())["accuracy_differences"]))))
    found = {(row["method"], row["scheme"]): row for row in rows}
    assert len(found) == len(rows) == 3
    row = found[("RTN", "w3")]
    assert float(row["difference"]) == -0.2
    assert float(row["low"]) < -0.2 < float(row["high"]) < 0
    assert (row["lost"], row["gained"], row["n"]) == ("20.0", "0.0", "100")
    assert (row["test"], row["paired_on"]) == ("exact McNemar", "documents")
    assert float(row["p"]) == mcnemar(20, 0)
    assert float(row["p_holm"]) == 3 * mcnemar(20, 0)
    assert (row["significant"], found[("RTN", "w4")]["significant"]) == ("True", "False")


def test_the_same_records_give_the_same_bytes_in_any_order() -> None:
    ways = [sweep(), list(reversed(sweep()))]
    for write in (to_csv, to_latex, to_markdown):
        first, second = ([write(table) for _, table in sorted(tables(way).items())] for way in ways)
        assert first == second


def test_latex_has_no_letter_that_it_cannot_set() -> None:
    text = "".join(to_latex(table) for table in tables(sweep()).values())
    assert r"$\Delta$" in text
    assert r"$\geq$" in text
    assert text.isascii()


def test_records_without_values_say_so_and_nothing_is_marked() -> None:
    older = [
        record(method, scheme, [figure("accuracy", "choice", None)], "zeroshot")
        for method, scheme in (("none", "w16"), ("rtn", "w4"))
    ]
    found = tables(older)
    assert "accuracy_differences" not in found
    assert found["accuracy"].footnotes == []
    said = "not tested for a difference from full precision: the records hold no values"
    assert any(
        note.text.startswith(f"These figures are {said}") for note in found["accuracy"].notes
    )
    alone = record("rtn", "w3", [figure("accuracy", "other", None)], "zeroshot", options="x")
    notes = [note.text for note in tables([*sweep(), alone])["accuracy"].notes]
    assert not any(said in text for text in notes)  # full precision has no such figure
    both_ways = [*sweep(), record("gptq", "w3", [figure("accuracy", "choice", None)], "zeroshot")]
    notes = [note.text for note in tables(both_ways)["accuracy"].notes]
    assert any(text.startswith(f"1 of these figures is {said}") for text in notes)


def test_other_documents_are_not_compared() -> None:
    metric = figure("accuracy", "choice", answers(range(30), ids="other documents"))
    found = tables([*sweep(), record("gptq", "w3", [metric], "zeroshot")])["accuracy"]
    assert marked(found)[("GPTQ", "w3")] == [
        "not on the windows or documents of full precision: not compared with it"
    ]


@pytest.mark.parametrize("without", ["none", "dtype"])
def test_without_one_row_in_full_precision_nothing_is_tested(without: str) -> None:
    records = sweep()[1:]
    if without == "dtype":  # two, and neither has the dtype of the quantized rows
        for dtype in ("float16", "bfloat16"):
            full = zeroshot("none", "w16", ())
            config = {**full.config, "model": {**full.config["model"], "dtype": dtype}}
            records.append(full.model_copy(update={"config": config, "cell_key": dtype}))
    assert "accuracy_differences" not in tables(records)


def test_seeds_are_one_row_with_their_mean() -> None:
    seeds = [zeroshot("rtn", "w4", lost, seed=seed) for seed, lost in enumerate([(1, 2), (2, 95)])]
    table = tables([zeroshot("none", "w16", ()), *seeds])["accuracy_differences"]
    (row,) = table.rows
    assert row[4].text.startswith("-1.0 [")
    assert row[5].text == "1.5/0.5"


def test_a_window_alone_is_no_test() -> None:
    metrics = [figure("perplexity", "t", losses(shift, windows=1)) for shift in (0.0, 0.4)]
    records = [record("none", "w16", metrics[:1]), record("rtn", "w4", metrics[1:])]
    found = tables(records)
    assert found["accuracy"].footnotes == [
        "a single one of windows: no test against full precision"
    ]
    (line,) = csv.DictReader(io.StringIO(to_csv(found["accuracy_differences"])))
    assert (line["p"], line["test"]) == ("", "")
