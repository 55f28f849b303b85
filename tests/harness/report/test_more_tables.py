"""The tables of divergence, layer products and published decode times, held to golden files.

BITSWEEP_UPDATE_GOLDEN=1 writes the golden files anew; look at the difference before committing.
"""

import csv
import os
from pathlib import Path

import pytest
from rich.console import Console

from harness.records.record import Failure
from harness.report import from_records, summary_tables
from harness.report.published_files import published_file
from harness.report.render import to_csv, to_markdown, to_rich
from harness.report.table import Cell, Column, Note, Table, on_screen, small
from harness.suites.published_latency import (
    NOT_MEASURED,
    Published,
    published_latencies,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "report"


def tables_of(records) -> dict[str, Table]:
    return {table.name: table for table in summary_tables(from_records(records))}


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("BITSWEEP_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture
def records(made_up):
    """Full precision, a sound kernel, a broken one, and a suite that failed."""
    make, sound = made_up.record, made_up.divergences()
    floor = [m for m in sound if m.name.startswith(("kl_floor", "kl_noise", "noise_"))]
    failure = Failure(stage="divergence", type="DivergenceError", message="no finite divergence.")
    return [
        make("none", "w16", "divergence", metrics=floor),
        make("rtn", "w4", "divergence", metrics=sound),
        make("gptq", "w4", "divergence", metrics=made_up.divergences(parity=2e-6)),
        make("gptq", "w3", "divergence", error=failure),
        make("none", "w16", "kernels", metrics=made_up.products("w16")),
        make("rtn", "w4", "kernels", metrics=made_up.products("w4")),
        make("gptq", "w4", "kernels", metrics=made_up.products("w4")),
    ]


@pytest.mark.parametrize("name", ["divergence", "divergence_by_confidence", "kernels"])
@pytest.mark.parametrize(("kind", "render"), [("csv", to_csv), ("md", to_markdown)])
def test_files_are_as_before(records, name, kind, render) -> None:
    check_golden(f"{name}.{kind}", render(tables_of(records)[name]))


def test_a_kernel_out_of_its_bound_is_marked_and_a_sound_one_is_not(records) -> None:
    table = tables_of(records)["divergence"]
    column = [each.name for each in table.columns].index("kernel_kl")
    full, sound, broken, failed = (row[column] for row in table.rows)
    assert (full.text, full.marks, sound.marks) == ("–", (), ())
    (mark,) = broken.marks
    assert table.footnotes[mark - 1] == (
        "parity BROKEN: mean above 1e-09 nat: do not trust this kernel"
    )
    assert failed.text == "failed"
    assert "no finite divergence" in table.footnotes[failed.marks[0] - 1]


def test_a_divergence_that_rounding_explains_is_marked(made_up) -> None:
    def marked(kl: float) -> bool:
        found = [each for each in made_up.divergences() if each.name != "kl_divergence"]
        first = next(each for each in made_up.divergences() if each.name == "kl_divergence")
        metrics = [*found, first.model_copy(update={"value": kl})]
        table = tables_of([made_up.record("rtn", "w8", "divergence", metrics=metrics)])[
            "divergence"
        ]
        column = [each.name for each in table.columns].index("kl_divergence")
        said = [table.footnotes[mark - 1] for mark in table.rows[0][column].marks]
        return "not above the rounding noise of bfloat16" in said

    assert marked(4.9e-4)
    assert not marked(5.1e-4)


def test_only_failures_make_no_table_by_confidence(made_up) -> None:
    failure = Failure(stage="divergence", type="DivergenceError", message="no finite divergence.")
    tables = tables_of([made_up.record("rtn", "w4", "divergence", error=failure)])
    assert "divergence" in tables
    assert "divergence_by_confidence" not in tables


def test_products_of_one_scheme_stand_once_whatever_the_method(records) -> None:
    table = tables_of(records)["kernels"]
    lines = [(row[0].text, row[1].text) for row in table.rows]
    assert len(lines) == len(set(lines)) == 4
    assert [row[2].text for row in table.rows] == ["128", "64"] * 2
    assert [column.detail for column in table.columns[-2:]] == ["b1", "b16"]
    assert {row[-1].text for row in table.rows} == {"–", "12.8"}
    lines = [(row[0].text, row[1].text, row[3].text) for row in table.csv.rows]
    assert len(lines) == len(set(lines)) == 8


def test_batches_that_a_row_lacks_are_empty_and_methods_complete_each_other(made_up) -> None:
    def of_batch(batch: int) -> list:
        return [m for m in made_up.products("w4") if m.task.endswith(f"_b{batch}")]

    failure = Failure(stage="kernels", type="KernelUnavailable", message="no compiler.")
    records = [
        made_up.record("rtn", "w4", "kernels", metrics=of_batch(1)),
        made_up.record("gptq", "w4", "kernels", metrics=of_batch(16)),
        made_up.record("rtn", "w3", "kernels", metrics=of_batch(16)),
        made_up.record("rtn", "w2", "kernels", error=failure),
    ]
    table = tables_of(records)["kernels"]
    texts = [[cell.text for cell in (row[0], row[3], *row[-2:])] for row in table.rows]
    assert texts == [
        ["w4", "3.70", "12.8", "12.8"],
        ["w4", "10.1", "12.8", "12.8"],
        ["w3", "–", "–", "12.8"],
        ["w3", "–", "–", "12.8"],
        ["w2", "failed", "failed", "failed"],
    ]
    assert len(list(csv.reader(to_csv(table).splitlines()))) == 1 + 4 + 2 + 1


def test_every_panel_of_a_narrow_screen_says_which_product_a_row_is(records) -> None:
    table = tables_of(records)["kernels"]
    console = Console(width=60)
    with console.capture() as capture:
        console.print(to_rich(table, width=60))
    lines = capture.get().splitlines()
    heads = [line for line in lines if "inputs → outputs" in line]
    assert len(heads) > 1
    assert sum("4096 → 11008" in line for line in lines) == 2 * len(heads)


def test_published_files_name_their_sources() -> None:
    with published_file("latency.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert all(line["source"].startswith("arXiv:2210.17323v2, Table 6") for line in lines)
    by = {(each.gpu, each.bits): each for each in published_latencies()}
    for gpu in ("A6000 48 GB", "A100 80 GB"):
        ratio = by[gpu, 16].ms_per_token / by[gpu, 3].ms_per_token
        assert ratio == pytest.approx(by[gpu, 3].speedup, abs=0.01)


def timed(made_up, model: str, *cells: tuple[str, str]) -> list:
    return [
        made_up.record(
            method, scheme, "latency", model=model, metrics=made_up.latencies(scheme != "w16")
        )
        for method, scheme in cells
    ]


def test_what_was_not_measured_says_so(made_up) -> None:
    only_packed = timed(made_up, "dummy-opt-175b", ("random", "w3"))
    table = tables_of(only_packed)["published"]
    text = to_markdown(table)
    check_golden("published.md", text)
    assert [row[3].text for row in table.rows if row[0].text == "ours"] == [
        NOT_MEASURED,
        "processor, 2 threads",
    ]
    both = timed(made_up, "opt-66b", ("none", "w16"), ("random", "w3"), ("random", "w4"))
    table = tables_of(both)["published"]
    assert NOT_MEASURED not in to_markdown(table)
    assert len([row for row in table.rows if row[0].text == "ours"]) == 3


def test_other_models_and_untimed_ones_have_no_such_table(made_up, sweep) -> None:
    assert "published" not in tables_of(sweep)
    untimed = [made_up.record("gptq", "w3", model="opt-175b", metrics=[made_up.perplexity(9.0)])]
    assert "published" not in tables_of(untimed)
    assert all(isinstance(each, Published) for each in published_latencies())


def test_a_baseline_that_was_too_large_is_a_footnote(made_up) -> None:
    (record,) = timed(made_up, "opt-66b", ("random", "w3"))
    metrics = [
        metric.model_copy(
            update={
                "notes": metric.notes | {"full-precision baseline": "not measured here: 122 GiB"}
            }
        )
        if metric.name == "decode_ms"
        else metric
        for metric in record.metrics
        if metric.name != "decode_speedup"
    ]
    (other,) = timed(made_up, "opt-66b", ("random", "w4"))
    table = tables_of([record.model_copy(update={"metrics": metrics}), other])["cost"]
    assert "full-precision baseline not measured here: 122 GiB" in table.footnotes


def test_a_row_decoded_otherwise_than_most_is_marked(made_up) -> None:
    records = timed(made_up, "m", ("none", "w16"), ("rtn", "w4"), ("gptq", "w4"))
    metrics = [
        metric.model_copy(update={"notes": metric.notes | {"decode mode": "dynamic cache (why)"}})
        for metric in records[2].metrics
    ]
    records[2] = records[2].model_copy(update={"metrics": metrics})
    table = tables_of(records)["cost"]
    assert "Decoded with static cache, eager (no CUDA graph on cpu)." in [
        note.text for note in table.notes
    ]
    assert "decoded with dynamic cache (why)" in table.footnotes


def _noted(record, **notes: dict[str, str]):
    """The record with notes added to metrics by name."""
    metrics = [
        each.model_copy(update={"notes": each.notes | notes.get(each.name, {})})
        for each in record.metrics
    ]
    return record.model_copy(update={"metrics": metrics})


def test_rows_over_several_devices_are_labelled(made_up) -> None:
    full, packed = timed(made_up, "opt-175b", ("none", "w16"), ("random", "w3"))
    full = _noted(full, decode_ms={"devices": "5", "gpu": "5 × A100"})
    packed = _noted(packed, decode_ms={"gpu": "A100"}, decode_speedup={"baseline devices": "5"})
    found = tables_of([full, packed])
    table = found["cost"]
    over, against = "over 5 devices, the harness's own loop", "full precision over 5 devices, "
    assert over in table.footnotes
    assert f"{against}this model on 1" in table.footnotes
    at = [column.name for column in table.columns]
    marked = {
        row[0].text: [row[at.index(name)].marks for name in ("decode_ms", "decode_speedup")]
        for row in table.rows
    }
    number = table.footnotes.index(over) + 1
    assert [number in marks[0] for marks in marked.values()] == [True, False]
    assert "5 devices" not in to_markdown(tables_of([packed])["cost"]).split("full precision")[0]
    ours = [row[3].text for row in found["published"].rows if row[0].text == "ours"]
    assert ours == ["5 × A100", "A100; full precision over 5"]
    assert "run by the harness's own loop, no serving engine" in to_markdown(found["published"])


def test_one_cell_on_one_device_and_over_several_is_a_row_for_each(made_up) -> None:
    (one,) = timed(made_up, "m", ("none", "w16"))
    records = [one]
    for count in (2, 4):
        spread = _noted(one, decode_ms={"devices": str(count)}, prefill_ms={"devices": str(count)})
        records.append(spread.model_copy(update={"key": f"{count}" * 64}))
    table = tables_of(records)["cost"]
    found = [row[0].text for row in table.rows]
    assert found == [
        "full prec.",
        "full prec. over 2 devices",
        "full prec. over 4 devices",
    ]
    assert [row[0].text for row in tables_of(records[1:2])["cost"].rows] == ["full prec."]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0016, "0.0016"), (1.4e-13, "1.4e-13"), (0.33, "0.33")]
)
def test_small_figures(value, text) -> None:
    assert small(value) == text


def test_the_perplexity_of_last_words_is_in_the_files(made_up) -> None:
    target = made_up.perplexity(4.2, name="target_perplexity", task="lambada_openai")
    metrics = [made_up.accuracy("lambada_openai", 0.7), target]
    table = tables_of([made_up.record("gptq", "w3", "zeroshot", metrics=metrics)])["accuracy"]
    column = next(each for each in table.columns if "target" in each.name)
    assert (column.name, column.on_screen) == ("lambada_openai:target_perplexity", False)
    assert "4.2" in to_csv(table)


def test_the_screen_has_no_note_on_a_column_that_is_in_the_files_alone(records, sweep) -> None:
    for table, hidden in (
        (tables_of(records)["divergence"], ("Agree:", "Floor:")),
        (tables_of(sweep)["cost"], ("Peak memory:",)),
    ):
        screen = on_screen(table)
        assert all(column.on_screen for column in screen.columns)
        assert all(len(row) == len(screen.columns) for row in screen.rows)
        for words in hidden:
            assert words in to_markdown(table)
            assert not any(note.text.startswith(words) for note in screen.notes)
        assert len(screen.notes) == len(table.notes) - len(hidden)


def test_footnotes_of_columns_in_the_files_alone_go_with_them() -> None:
    columns = [Column("a", "a"), Column("b", "b", on_screen=False), Column("c", "c")]
    cells = [Cell("1", marks=(2,)), Cell("2", marks=(1,)), Cell("3", marks=(2, 3))]
    notes = [Note("all"), Note("on b", ("b",)), Note("on b or c", ("b", "c"))]
    screen = on_screen(Table("t", "m", "T", columns, [cells], notes, ["one", "two", "three"]))
    assert [cell.marks for cell in screen.rows[0]] == [(1,), (1, 2)]
    assert screen.footnotes == ["two", "three"]
    assert [note.text for note in screen.notes] == ["all", "on b or c"]


@pytest.mark.parametrize(("share", "said"), [(0.88, False), (1.18, True)])
def test_a_share_of_the_roof_above_all_of_it_is_explained(made_up, share, said) -> None:
    *others, latency = made_up.cell("none", "w16", 5.0)
    metrics = [
        each.model_copy(update={"value": share}) if each.name == "roofline_share" else each
        for each in latency.metrics
    ]
    records = [*others, latency.model_copy(update={"metrics": metrics})]
    notes = tables_of(records)["cost"].notes
    (note,) = [each.text for each in notes if each.text.startswith("Roof")]
    assert note.endswith("caches hold what a token reads.") == said
