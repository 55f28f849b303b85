"""What suites declare becomes tables: columns of their own, joined ones, whole tables, or none."""

import csv
import importlib.util
import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from harness.records.record import Metric
from harness.report import build_report, from_records, summary_table, summary_tables
from harness.report.columns import ACCURACY, COST, FigureColumn, OwnTable, Place, SuiteTable
from harness.report.latex import to_latex
from harness.report.render import to_csv, to_markdown
from harness.report.table import Cell, Column, Note, Table
from harness.suites.base import Suite, SuiteResult

TOY = """
from dataclasses import dataclass

from harness.report.columns import AgainstBits, FigureColumn, SuiteTable
from harness.report.table import Cell
from harness.suites.base import Suite, SuiteResult


@dataclass
class Config:
    rounds: int = 3


def run(context, config):
    return SuiteResult([])


def stars(figure):
    return Cell("*" * int(figure.value), figure.value)


PLOT = AgainstBits("toys", "Toys against bits")

SUITE = Suite(
    name="toy",
    version=1,
    config=Config,
    run=run,
    table=SuiteTable(columns=(FigureColumn("toy_score", "score", "stars", stars, plot=PLOT),)),
)
"""


@pytest.fixture
def toy(tmp_path) -> Suite:
    """The spec of a suite in somebody's file."""
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    found = importlib.util.spec_from_file_location("toy_suite", file)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.SUITE


def score(value: float, task: str = "blocks", **changes) -> Metric:
    fields = {"name": "toy_score", "unit": "stars", "n": 3, "n_unit": "rounds"}
    return Metric(**fields | {"value": value, "task": task} | changes)


@pytest.fixture
def records(made_up) -> list:
    return [
        made_up.record("rtn", "w4", metrics=[made_up.perplexity(5.6)]),
        made_up.record("rtn", "w4", "toy", metrics=[score(2)]),
        made_up.record("gptq", "w4", "toy", metrics=[score(4)]),
    ]


def a_suite(name: str, table: SuiteTable) -> Suite:
    @dataclass
    class Config:
        pass

    return Suite(name, 1, Config, lambda context, config: SuiteResult([]), table)


def tables_of(records, *suites: Suite) -> dict[str, Table]:
    named = {suite.name: suite for suite in suites}
    return {table.name: table for table in summary_tables(from_records(records), named)}


def screen(renderable) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_a_new_suite_shows_on_screen_in_files_and_plots(toy, records, tmp_path) -> None:
    text = screen(summary_table(records, suites={"toy": toy}))
    assert "Toy of embedded" in text
    assert "score" in text
    assert "stars" in text
    assert "****" in text
    table = tables_of(records, toy)["toy"]
    assert [row["toy_score"] for row in csv.DictReader(io.StringIO(to_csv(table)))] == [
        "2.0",
        "4.0",
    ]
    assert "score \\\\" in to_latex(table)
    assert "| RTN | w4 | 4.08 | ** |".replace("*", "\\*") in to_markdown(table)
    written = build_report(records, tmp_path / "report", suites={"toy": toy})
    names = {path.relative_to(tmp_path / "report").as_posix() for path in written}
    assert {"tables/toy.csv", "tables/toy.tex", "plots/toys.png", "plots/toys.svg"} <= names
    assert "toy_score" in (tmp_path / "report" / "metrics.csv").read_text()
    assert "Toys against bits, embedded" in (tmp_path / "report" / "summary.md").read_text()


def test_without_its_code_all_its_metrics_show(made_up) -> None:
    more = score(0.25, name="speed", unit="fraction", higher_is_better=True)
    records = [made_up.record("rtn", "w4", "toy", metrics=[score(2), more, score(3, "balls")])]
    table = tables_of(records)["toy"]
    assert [(column.header, column.detail) for column in table.columns[3:]] == [
        ("balls", "toy_score ↓"),
        ("blocks", "speed % ↑"),
        ("blocks", "toy_score ↓"),
    ]
    assert [cell.text for cell in table.rows[0][3:]] == ["3.00", "25.0", "2.00"]
    assert [column.name for column in table.columns[3:]] == [
        "balls:toy_score",
        "blocks:speed",
        "blocks:toy_score",
    ]


@pytest.mark.parametrize("name", ["scoring", "base", "no/path", "..cell.keys", "harness.cli"])
def test_a_name_that_is_no_suite_has_the_generic_table(made_up, name) -> None:
    records = [made_up.record("rtn", "w4", name, metrics=[score(2)])]
    (table,) = tables_of(records).values()
    assert table.columns[-1].name == "blocks:toy_score"


def test_a_suite_that_failed_everywhere_says_why(toy, made_up) -> None:
    error = {"stage": "toy", "type": "ValueError", "message": "no toys"}
    records = [made_up.record("rtn", "w4", "toy", error=error)]
    for table in (tables_of(records, toy)["toy"], tables_of(records)["toy"]):
        assert table.columns[-1].name == "toy:status"
        assert table.rows[0][-1].text == "failed"
        assert table.footnotes == ["toy: ValueError: no toys"]


def test_a_failed_quantization_is_why_a_suite_has_no_figure(toy, made_up, records) -> None:
    error = {"stage": "quantization", "type": "SingularHessianError", "message": "rank 3"}
    records.append(made_up.record("gptq", "w3", "quantization", error=error))
    table = tables_of(records, toy)["toy"]
    assert [row[-1].text for row in table.rows] == ["**", "****", "failed"]
    assert "rank 3" in table.footnotes[0]


def test_columns_join_a_table_that_others_made(records) -> None:
    table = SuiteTable((FigureColumn("toy_score", detail="toys"),), joins=ACCURACY, compared=True)
    joined = tables_of(records, a_suite("toy", table))["accuracy"]
    assert [column.name for column in joined.columns[-2:]] == [
        "embedded_eval:perplexity",
        "blocks:toy_score",
    ]
    assert [cell.best for cell in (row[-1] for row in joined.rows)] == [True, False]  # ↓
    assert joined.columns[-1].detail == "toys ↓"
    assert "Measured on embedded_eval: 20480 tokens; blocks: 3 rounds." in [
        note.text for note in joined.notes
    ]


def test_several_tasks_of_one_metric_stand_side_by_side(made_up) -> None:
    records = [made_up.record("rtn", "w4", "toy", metrics=[score(2), score(3, "balls")])]
    suite = a_suite("toy", SuiteTable((FigureColumn("toy_score", "score", "pts"),), joins=COST))
    columns = tables_of(records, suite)["cost"].columns[3:]
    assert [(each.name, each.header, each.detail) for each in columns] == [
        ("balls:toy_score", "balls", "score pts"),
        ("blocks:toy_score", "blocks", "score pts"),
    ]


def test_two_suites_with_one_metric_keep_columns_of_their_own(made_up) -> None:
    records = [
        made_up.record("rtn", "w4", name, metrics=[score(value)])
        for name, value in (("toy", 2), ("game", 5))
    ]
    table = SuiteTable((FigureColumn("toy_score", "score"),), joins=Place("both", "Both"))
    joined = tables_of(records, a_suite("toy", table), a_suite("game", table))["both"]
    assert [column.name for column in joined.columns[-2:]] == ["toy_score", "toy:toy_score"]
    assert [cell.value for cell in joined.rows[0][-2:]] == [5, 2]


def test_footnotes_absences_and_notes_are_the_suites_own(made_up, records) -> None:
    make = made_up.record

    def few(row, key, rows):
        return ["few stars"] if row.figures[key].value < 3 else []

    def absent(row, key):
        return "" if row.full_precision else "no toys here"

    def notes(rows, shown):
        return [Note(f"{len(rows)} rows, {shown[0].column.name}")]

    column = FigureColumn("toy_score", "score", footnotes=few, absent=absent)
    suite = a_suite("toy", SuiteTable((column,), notes=notes))
    table = tables_of(records[:2], suite)["toy"]
    assert table.footnotes == ["few stars"]
    assert [note.text for note in table.notes] == ["1 rows, toy_score"]
    without = make("rtn", "w2", "toy", metrics=[score(2, name="other")])
    table = tables_of([*records, without], suite)["toy"]
    assert [row[-1].text for row in table.rows] == ["2.00", "4.00", "–"]
    assert table.footnotes == ["few stars", "no toys here"]


def test_a_suite_brings_a_whole_table(records) -> None:
    def make(model, rows):
        return Table("ladder", model, "Ladder", [Column("a", "a")], [[Cell(str(len(rows)))]])

    own = SuiteTable(tables=(OwnTable(Place("ladder", "Ladder", 5), make),))
    made = tables_of(records, a_suite("toy", own))
    assert list(made) == ["ladder", "accuracy"]  # by rank
    assert made["ladder"].rows[0][0].text == "2"


def test_notes_on_replaced_figures_are_under_the_first_table(made_up) -> None:
    records = [
        made_up.record("rtn", "w4", "toy", metrics=[score(value)], key=key * 64, started_at=when)
        for value, key, when in ((2, "a", "2026-01-01"), (3, "b", "2026-02-01"))
    ]
    table = tables_of(records)["toy"]
    assert [cell.value for cell in table.rows[0][3:]] == [3]
    assert "1 older figure of the same cells" in table.notes[-1].text


def test_a_small_figure_without_an_error_keeps_its_digits(made_up) -> None:
    suite = a_suite("toy", SuiteTable((FigureColumn("toy_score", "score"),)))
    figures = [
        Metric(name="toy_score", task=f"t{value}", value=value, unit="1", n=1, n_unit="layers")
        for value in (0.0198, 0.00012, 0.0, 1.5, -0.25)
    ]
    (table,) = summary_tables(
        from_records([made_up.record(suite="toy", metrics=figures)]), {"toy": suite}
    )
    shown = {cell.value: cell.text for cell in table.rows[0] if isinstance(cell.value, float)}
    expected = {0.0198: "0.0198", 0.00012: "1.20e-04", 0.0: "0", 1.5: "1.50", -0.25: "-0.250"}
    assert shown.items() >= expected.items()
