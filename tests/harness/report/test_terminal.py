"""What a terminal shows of reports with more rows than a person reads there."""

from harness.report.build import make_report
from harness.report.table import Cell, Column, Table
from harness.report.terminal import MOST, for_terminal

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
