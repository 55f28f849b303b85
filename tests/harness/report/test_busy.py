"""Timings that others disturbed: a footnote with the range of all rows, and no figure dropped."""

from harness.records.busyness import with_note
from harness.records.record import Record
from harness.report import from_records, summary_tables
from tests.harness.report.conftest import latencies, make_record, products


def test_disturbed_timings_have_one_footnote_and_stay() -> None:
    def latency(scheme: str, busy: str) -> Record:
        metrics = with_note(latencies(True), busy)
        return make_record("gptq", scheme, "latency", metrics=metrics)

    records = [
        latency("w4", "0.8 of 2 cores by others"),
        latency("w3", "1.6 of 2 cores by others, 2.5 tasks of others in the run queue of 2 cores"),
        latency("w2", ""),
    ]
    (table,) = [each for each in summary_tables(from_records(records)) if each.name == "cost"]
    said = [text for text in table.footnotes if "busy" in text]
    assert said == [
        "measured while the machine was busy (0.8–1.6 of 2 cores by others, 2.5 tasks of others in "
        "the run queue of 2 cores)"
    ]
    mark = table.footnotes.index(said[0]) + 1
    names = [column.name for column in table.columns]
    decode, size = names.index("decode_ms"), names.index("weight_bytes")
    assert [mark in row[decode].marks for row in table.rows] == [True, True, False]
    assert not any(mark in row[size].marks for row in table.rows)
    assert all(row[decode].value for row in table.rows)
    assert not any("busy" in note.text for note in table.notes)  # it is no condition


def test_products_of_layers_are_marked_too() -> None:
    metrics = with_note(products("w4"), "1.3 of 2 cores by others")
    records = [make_record("gptq", "w4", "kernels", metrics=metrics)]
    (table,) = [each for each in summary_tables(from_records(records)) if each.name == "kernels"]
    assert table.footnotes == ["measured while the machine was busy (1.3 of 2 cores by others)"]
    assert table.rows[0][3].marks == (1,)
