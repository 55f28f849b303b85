"""The summary tables and their renderings, held to golden files.

BITSWEEP_UPDATE_GOLDEN=1 writes the golden files anew; look at the difference before committing.
"""

import csv
import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from harness.records.record import LayerReport
from harness.report import from_records, summary_table, summary_tables
from harness.report.latex import to_latex
from harness.report.render import to_csv, to_markdown, to_rich
from harness.report.table import Cell, Column, Note, Table, measured, ranged, significant

GOLDEN = Path(__file__).parents[2] / "golden" / "report"


def tables_of(records) -> dict[str, Table]:
    return {table.name: table for table in summary_tables(from_records(records))}


def on_screen(renderable, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("BITSWEEP_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["accuracy", "cost"])
@pytest.mark.parametrize(
    ("kind", "render"), [("csv", to_csv), ("tex", to_latex), ("md", to_markdown)]
)
def test_files_are_as_before(sweep, name, kind, render) -> None:
    check_golden(f"{name}.{kind}", render(tables_of(sweep)[name]))


def test_screen_is_as_before_and_fits_100_columns(sweep) -> None:
    text = on_screen(summary_table(sweep))
    check_golden("screen.txt", text)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("GPTQ") == 10  # two tables in one panel each


@pytest.mark.parametrize("width", [50, 70, 100, 160])
def test_a_wide_table_is_split_and_loses_no_column(sweep, width) -> None:
    table = tables_of(sweep)["cost"]
    text = on_screen(to_rich(table, width), width)
    assert "…" not in text
    for column in table.columns:
        assert not column.on_screen or column.header in text


def test_columns_stay_aligned_where_the_encoding_lacks_characters(sweep, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    (panel, *_) = to_rich(tables_of(sweep)["accuracy"]).renderables
    text = on_screen(panel)
    assert "+/-" in text
    # rich laid out what will stand there, so nothing grows when it is written.
    assert all(line.isascii() for line in text.splitlines() if "─" not in line)
    assert "ppl v" in text


def test_the_title_of_a_narrow_table_is_not_folded() -> None:
    table = Table(
        "x", "m", "Time and memory of a-model-of-a-long-name", [Column("s", "s")], [[Cell("1")]]
    )
    assert table.title in on_screen(to_rich(table))


def test_csv_keeps_every_digit(sweep) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(tables_of(sweep)["accuracy"]))))
    row = next(row for row in rows if (row["method"], row["scheme"]) == ("GPTQ", "w3"))
    assert float(row["embedded_eval:perplexity"]) == 5.93
    assert float(row["embedded_eval:perplexity_stderr"]) == 5.93 * 0.011
    failed = rows[-1]
    assert failed["embedded_eval:perplexity"] == ""
    assert "SingularHessianError" in failed["footnotes"]


def test_failures_are_shown_with_their_cause(sweep) -> None:
    table = tables_of(sweep)["accuracy"]
    *_, last = table.rows
    assert [cell.text for cell in last[3:]] == ["failed"] * 3
    (mark,) = last[3].marks
    assert "rank 12 of 1024" in table.footnotes[mark - 1]


def test_a_screen_without_causes_keeps_the_other_footnotes(sweep) -> None:
    text = on_screen(summary_table(sweep, causes=False))
    assert "rank 12 of 1024" not in text
    assert "no task named" not in text
    assert "failed²" not in text
    assert text.count("failed") == 5 + 6
    assert "¹ reference kernel" in text


def test_a_figure_without_its_failed_seeds_says_so_with_and_without_the_cause(made_up) -> None:
    error = {"stage": "perplexity", "type": "OSError", "message": "disk full"}
    records = [
        made_up.record(metrics=[made_up.perplexity(5.0)]),
        made_up.record(seed=1, error=error),
    ]
    with_cause = on_screen(summary_table(records))
    assert "¹ without the seeds that failed" in with_cause
    assert "² perplexity: OSError: disk full" in with_cause
    without = on_screen(summary_table(records, causes=False))
    assert "¹ without the seeds that failed" in without
    assert "disk full" not in without


def test_a_sweep_of_failures_alone_still_has_a_table(made_up) -> None:
    error = {"stage": "quantization", "type": "CalibrationError", "message": "text too short"}
    records = [made_up.record("gptq", "w4", "quantization", error=error)]
    assert "text too short" in on_screen(summary_table(records))


def test_a_suite_that_failed_everywhere_has_a_column(made_up) -> None:
    error = {"stage": "latency", "type": "ValueError", "message": "too long"}
    records = [
        made_up.record(metrics=[made_up.perplexity(5.0)]),
        made_up.record(suite="latency", error=error),
    ]
    table = tables_of(records)["cost"]
    assert table.columns[-1].header == "latency"
    assert table.rows[0][-1].text == "failed"


def test_the_best_of_a_bit_width_is_bold_in_the_right_direction(sweep) -> None:
    table = tables_of(sweep)["accuracy"]
    best = {
        (row[0].text, row[1].text, column.name)
        for row in table.rows
        for column, cell in zip(table.columns, row, strict=True)
        if cell.best
    }
    assert ("GPTQ", "w3", "embedded_eval:perplexity") in best
    assert ("GPTQ", "w4g128", "embedded_eval:perplexity") in best
    assert ("GPTQ", "w4", "embedded_eval:perplexity") not in best
    assert ("GPTQ", "w4", "embedded_last_word:accuracy") in best
    assert not [each for each in best if each[1] == "w2"]  # its rival failed


def test_figures_on_other_tokens_are_marked(made_up) -> None:
    records = [
        made_up.record("rtn", scheme, metrics=[made_up.perplexity(5.0)]) for scheme in ("w8", "w4")
    ]
    other = made_up.perplexity(4.0, n=100, notes={"token_hash": "other"})
    records.append(made_up.record("rtn", "w3", metrics=[other]))
    table = tables_of(records)["accuracy"]
    assert [row[-1].marks for row in table.rows] == [(), (), (1,)]
    assert "do not compare" in table.footnotes[0]


def test_models_have_tables_of_their_own(made_up) -> None:
    records = made_up.cell("rtn", "w4", 5.5) + made_up.cell("rtn", "w4", 6.5, model="opt-125m")
    tables = summary_tables(from_records(records))
    assert [(table.model, table.name, len(table.rows)) for table in tables] == [
        ("embedded", "accuracy", 1),
        ("embedded", "cost", 1),
        ("opt-125m", "accuracy", 1),
        ("opt-125m", "cost", 1),
    ]


def test_no_records_say_so() -> None:
    assert "No records" in on_screen(summary_table([]))


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (20.392, 0.3212, "20.39 ± 0.32"),
        (5.0151, 0.0552, "5.015 ± 0.055"),
        (5.0151, None, "5.02"),
        (5.0151, 0.0, "5.02 ± 0.00"),
        (48213.4, 530.3, "48213 ± 530"),
        (1.234e7, 3.3e5, "1.23e+07 ± 3e+05"),
        (0.00012, 0.0000345, "0.000120 ± 0.000034"),
    ],
)
def test_digits_follow_the_standard_error(value, stderr, text) -> None:
    assert measured(value, stderr) == text


def test_other_numbers() -> None:
    assert measured(91.666, 1.23, 1, 1) == "91.7 ± 1.2"
    assert [significant(x) for x in (0, 0.01234, 1.5, 12.34, 1234.5)] == [
        "0",
        "0.0123",
        "1.50",
        "12.3",
        "1234",
    ]
    assert ranged(12.34, 11.9, 13.06) == "12.3 [11.9–13.1]"
    assert ranged(12.34, None, None) == "12.3"


def test_special_characters_are_escaped() -> None:
    columns = [Column("a", "50% of_a & b", numeric=False), Column("b", "x|y")]
    table = Table(
        "t",
        "m",
        "A #1 table",
        columns,
        [[Cell(r"w\_$^~{}"), Cell("*5*", best=True)]],
        [Note("<see>")],
    )
    latex, markdown = to_latex(table), to_markdown(table)
    assert r"50\% of\_a \& b" in latex
    assert r"w\textbackslash{}\_\$\textasciicircum{}\textasciitilde{}\{\}" in latex
    assert r"\caption{A \#1 table}" in latex
    assert r"x\|y" in markdown
    assert r"**\*5\***" in markdown
    assert r"\<see>" in markdown


def test_normalised_accuracy_and_unknown_metrics_have_columns(made_up) -> None:
    plain = made_up.accuracy("arc_easy", 0.25)
    normalised = plain.model_copy(update={"name": "acc_norm", "value": 0.31})
    extra = plain.model_copy(update={"name": "f1"})  # arc_easy has its headline already
    other = plain.model_copy(update={"name": "exact_match", "task": "gsm", "unit": "points"})
    records = [made_up.record(suite="zeroshot", metrics=[plain, normalised, extra, other])]
    table = tables_of(records)["accuracy"]
    assert [(c.header, c.detail) for c in table.columns[3:]] == [
        ("arc_easy", "acc. % ↑"),
        ("arc_easy", "norm. acc. % ↑"),
        ("gsm", "exact_match ↑"),
    ]
    assert [cell.text for cell in table.rows[0][3:]] == [
        "25.0 ± 1.9",
        "31.0 ± 1.9",
        "0.250 ± 0.019",
    ]


def test_a_transform_that_left_layers_as_they_were_is_a_footnote_of_the_method(made_up) -> None:
    made = made_up.record("gptq", "w4", "quantization")
    layer = LayerReport(
        name="fc1", block=0, method="gptq", scheme="w4", outputs=4, inputs=4, bits_per_weight=4.5,
        loss=None, weight_error=0.1, damping=None, dead_columns=0, tokens=0, seconds=0.0,
    )  # fmt: skip
    notes = ("equalize into norm", "equalize not applied: act has no parameters")
    layers = [layer.model_copy(update={"transforms": [note]}) for note in notes]
    score = made_up.record("gptq", "w4", metrics=[made_up.perplexity(5.6)])
    table = tables_of([made.model_copy(update={"layers": layers}), score])["accuracy"]
    assert table.rows[0][0].marks == (1,)
    assert table.footnotes == [
        "equalize: applied to 1 of 2 layers; not to 1, because act has no parameters"
    ]
    whole = made.model_copy(update={"layers": layers[:1]})
    assert tables_of([whole, score])["accuracy"].footnotes == []
