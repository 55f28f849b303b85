"""Weights of a GGUF file: every table says what they are, and one how far they were moved."""

import pytest

from harness.records.record import LayerReport, Record
from harness.report import build_report, from_records, summary_tables
from harness.report.render import to_markdown
from tests.harness.report.conftest import make_record, perplexity

Q4_1 = {
    "file": "model.Q4_1.gguf",
    "weights": {"Q4_1": 7900, "Q8_0": 2100, "F32": 2},
    "bits_per_weight": 5.7437,
}


def layer(name: str, error: float, method: str) -> LayerReport:
    return LayerReport(
        name=name, block=0, method=method, scheme="w4", outputs=4, inputs=4, bits_per_weight=4.5,
        loss=None, weight_error=error, damping=None, dead_columns=0, tokens=0, seconds=0.1,
    )  # fmt: skip


def records(made_of: dict[str, object] | None) -> list[Record]:
    config = {} if made_of is None else {"model.made_of": made_of}
    errors = {"model.0.q": 0.09, "model.1.q": 0.07, "model.2.q": 0.08, "model.0.down": 0.101}
    found = [make_record("none", "w16", metrics=[perplexity(4.0)], config=config)]
    for method, scale in (("rtn", 1), ("gptq", 2)):
        layers = [layer(name, scale * error, method) for name, error in errors.items()]
        found.append(make_record(method, "w4", metrics=[perplexity(4.2)], config=config))
        found.append(make_record(method, "w4", "quantization", layers=layers, config=config))
    return found


def test_every_table_says_what_the_weights_are() -> None:
    tables = summary_tables(from_records(records(Q4_1)))
    assert [table.name for table in tables] == ["accuracy", "weight_error"]
    for table in tables:
        (said,) = (note.text for note in table.notes if "grid of 4 bits already" in note.text)
        assert "model.Q4_1.gguf (Q4_1 79%, Q8_0 21%; 5.74 bits a weight)" in said
        assert "is not exact" in said


def test_a_table_shows_how_far_each_kind_of_layer_was_moved() -> None:
    *_, table = summary_tables(from_records(records(Q4_1)))
    assert [column.header for column in table.columns][-2:] == ["q", "down"]
    assert [[cell.text for cell in row[-2:]] for row in table.rows] == [
        ["8.00 [7.00–9.00]", "10.1 [10.1–10.1]"],
        ["16.0 [14.0–18.0]", "20.2 [20.2–20.2]"],
    ]
    assert "Change of the weights of embedded" in to_markdown(table)


@pytest.mark.parametrize("made_of", [None, {**Q4_1, "weights": {"BF16": 10, "F32": 1}}])
def test_other_weights_have_neither(made_of: dict[str, object] | None, tmp_path) -> None:
    found = records(made_of)
    assert not [t for t in summary_tables(from_records(found)) if t.name == "weight_error"]
    build_report(found, tmp_path)
    assert "dequantized, not those" not in (tmp_path / "summary.md").read_text()
