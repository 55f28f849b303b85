"""What a terminal shows of reports with more rows than a person reads there."""

import pytest

from harness.records.record import Failure
from harness.report.build import make_report
from harness.report.frame import from_records
from harness.report.rows import read_rows
from harness.report.table import Cell, Column, Table
from harness.report.tables import models_of, tables_of
from harness.report.terminal import MOST, MOST_IN_ALL, for_terminal

METHODS = 60


def many(made_up):
    """Full precision, 60 methods at 4 bits, the 50th of which is the best, and two at 3 bits."""
    records = made_up.cell("none", "w16", 5.0)
    for number in range(METHODS):
        value = 6.0 + (number - 50) % METHODS / 10
        made = {"config": {"method.damping": number}, "options": f"number {number:02}"}
        records += made_up.cell("gptq", "w4", value, **made)
    for number, value in ((58, 9.0), (59, 8.0)):
        made = {"config": {"method.damping": number}, "options": f"number {number:02}"}
        records += made_up.cell("gptq", "w3", value, **made)
    return records


def names(table: Table) -> list[tuple]:
    return [(row[0].value, row[1].value) for row in table.rows]


def test_a_long_table_has_the_best_rows_and_says_where_all_are(made_up) -> None:
    report = make_report(many(made_up), "Many")
    (accuracy,) = [table for table in report.tables if table.name == "accuracy"]
    assert len(accuracy.rows) == MOST
    shown = names(accuracy)
    assert shown[0] == ("full prec.", "float32")
    assert {("GPTQ number 50", "w4"), ("GPTQ number 59", "w3")} <= set(shown)
    assert accuracy.notes[0].text.startswith(f"{MOST} of {METHODS + 3} rows: the best")
    summary = report.files["summary.md"].decode()
    lines = [line for line in summary.splitlines() if line.startswith(("| GPTQ", "| **GPTQ"))]
    places = [
        next(at for at, line in enumerate(lines) if f"{label} | {scheme} |" in line)
        for label, scheme in shown[1:]
    ]
    assert places == sorted(places)  # in the order of the whole table
    assert all(f"number {number:02} | w4 |" in summary for number in range(METHODS))
    assert f"{MOST} of" not in summary


def test_a_short_table_is_whole(made_up) -> None:
    records = made_up.cell("none", "w16", 5.0) + made_up.cell("gptq", "w4", 5.5)
    report = make_report(records, "Few")
    for table in report.tables:
        assert len(table.rows) <= MOST
        assert not any("summary.md" in note.text for note in table.notes)


def test_rows_of_several_calibrations_are_told_apart(made_up) -> None:
    """60 texts of one method, of which the last twenty are the best: they are shown."""
    records = made_up.cell("none", "w16", 5.0)
    for number in range(METHODS):
        name = f"text{number:02}"
        value = 6.0 if number >= METHODS - 20 else 9.0
        made = made_up.cell("gptq", "w4", value, config={"calib.name": name})
        for each in made:
            cell = each.cell.model_copy(update={"calibration": name})
            records.append(each.model_copy(update={"cell": cell}))
    report = make_report(records, "Texts")
    (accuracy,) = [table for table in report.tables if table.name == "accuracy"]
    shown = {row[2].value for row in accuracy.rows}
    assert shown >= {f"text{number}" for number in range(METHODS - 20, METHODS)}


def test_a_long_table_without_names_of_rows_has_its_first_lines() -> None:
    lines = [[Cell(str(number), float(number), best=number == MOST)] for number in range(MOST + 1)]
    table = Table("own", "embedded", "Own", [Column("number", "number")], lines)
    (shown,) = for_terminal([table], [])
    assert shown.rows == lines[:MOST]
    assert shown.notes[0].text == f"The first {MOST} of {MOST + 1} rows. All are in summary.md."


def of_models(made_up, count: int, per_model: int):
    """Full precision and RTN at w4 of each model, and GPTQ of several dampings, the last best."""
    records = []
    for model in range(count):
        name = f"m{model:02}"
        records += made_up.cell("none", "w16", 5.0, model=name)
        records += made_up.cell("rtn", "w4", 7.0 + model, model=name)
        for number in range(per_model):
            made = {"config": {"method.damping": number}, "options": f"number {number:02}"}
            value = 6.5 + model - number / 100
            records += made_up.cell("gptq", "w4", value, model=name, **made)
    return records


def on_terminal(records) -> list[Table]:
    every = read_rows(from_records(records))
    models = models_of(every.rows)
    return for_terminal(tables_of(models, every.notes), models, every.notes)


def test_tables_of_many_models_are_a_few_across_them(made_up) -> None:
    models = MOST_IN_ALL // 10
    tables = on_terminal(of_models(made_up, models, 10))
    assert {table.model for table in tables} == {""}
    first, last = tables[0], tables[-1]
    assert [each.header for each in first.columns] == [
        *("method", "scheme"),
        *(f"m{model:02}" for model in range(models)),
    ]
    assert first.title == "embedded_eval ppl ↓, by model"
    rows = {(row[0].text, row[1].text): row[2:] for row in first.rows}
    assert [cell.text for cell in rows["full prec.", ""]] == ["5.000"] * models
    assert [cell.value for cell in rows["RTN", "w4"]] == [7.0 + each for each in range(models)]
    assert all(cell.best for cell in rows["GPTQ number 09", "w4"])
    assert not any(cell.best for cell in rows["GPTQ number 08", "w4"])
    assert not any(cell.marks for row in first.rows for cell in row)
    assert "summary.md" in last.notes[-1].text


def test_tables_of_few_models_are_their_own(made_up) -> None:
    tables = on_terminal(of_models(made_up, 2, 1))
    assert {table.model for table in tables} == {"m00", "m01"}


@pytest.mark.parametrize("models", [MOST, MOST + 1])
def test_a_table_across_models_has_no_more_rows_and_columns_than_a_person_reads(
    made_up, models
) -> None:
    first = on_terminal(of_models(made_up, models, MOST))[0]
    assert (len(first.columns), len(first.rows)) == (2 + MOST, MOST)
    assert first.rows[0][0].text == "full prec."
    assert f"GPTQ number {MOST - 1}" in {row[0].text for row in first.rows}  # the best
    said = [note.text for note in first.notes]
    assert f"{MOST} of {MOST + 2} rows: the best of each bit width." in said
    assert (f"{MOST} of {models} models." in said) == (models > MOST)


def test_a_calibration_is_one_row_where_only_some_models_have_several(made_up) -> None:
    """Two texts in the first model, the first of them alone in the others."""
    records = of_models(made_up, MOST_IN_ALL // 10, 10)
    for model, text in (("m00", "news"), ("m00", "code"), *((f"m{n:02}", "news") for n in (1, 2))):
        config = {"calib.name": text}
        made = made_up.cell("gptq", "w3", 8.0, model=model, config=config, options="own")
        for each in made:
            cell = each.cell.model_copy(update={"calibration": text})
            records.append(each.model_copy(update={"cell": cell}))
    first = on_terminal(records)[0]
    rows = {row[0].text: [cell.text for cell in row[2:5]] for row in first.rows}
    assert {name: cells for name, cells in rows.items() if "own" in name} == {
        "GPTQ own news": ["8.000"] * 3,
        "GPTQ own code": ["8.000", "–", "–"],
    }


def test_failures_of_many_models_are_counted(made_up) -> None:
    records = of_models(made_up, MOST_IN_ALL // 10, 10)
    error = Failure(stage="perplexity", type="ValueError", message="none")
    failed = {"model": "m00", "method": "gptq", "scheme": "w3", "error": error, "metrics": []}
    records.append(made_up.record(**failed))
    first = on_terminal(records)[0]
    assert [row[2].text for row in first.rows if row[1].text == "w3"] == ["failed"]
    assert "Rows with a failure, of all models: 1." in [note.text for note in first.notes]


def test_models_without_the_figure_of_a_table_are_named(made_up) -> None:
    records = of_models(made_up, MOST_IN_ALL // 10, 10)
    *_, latency = made_up.cell("none", "w16", 5.0, model="other")
    first = on_terminal([*records, latency])[0]
    assert "other" not in [each.header for each in first.columns]
    assert "Models without this figure: other." in [note.text for note in first.notes]
