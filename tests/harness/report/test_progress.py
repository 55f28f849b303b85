"""Which published tables a results folder has, and what the others need."""

from pathlib import Path

import pytest

from harness import cli
from harness.report import from_records, summary_tables
from harness.report.progress import COMPLETE, commands, progress, progress_table
from harness.report.published import published_figures
from harness.report.render import to_csv, to_markdown
from tests.harness.report.test_more_tables import check_golden


def measured(made_up, table: str, **changes):
    """Records as whole runs of a table's figures leave them."""
    found = []
    for each in published_figures():
        if each.table != table or each.model == "opt-175b":
            continue
        metric = made_up.perplexity(
            each.value * 1.001,
            task=each.task,
            notes={"windows": "140 of 2048", "protocol": f"{each.task} v1: x"},
        )
        for seed in (0, 1, 2) if each.method == "gptq" else (0,):
            calib = {
                "calib.protocol": "c4-train",
                "calib.sequences": 128,
                "calib.length": 2048,
                "calib.seed": seed,
            }
            config = {"model.dtype": "float16", **(calib if each.method == "gptq" else {})}
            found.append(
                made_up.record(
                    each.method,
                    each.scheme,
                    model=each.model,
                    metrics=[metric],
                    seed=seed,
                    config=config,
                    **changes,
                )
            )
    return found


def test_without_records_everything_is_open_but_what_nobody_can_have() -> None:
    found = {each.table: each for each in progress([])}
    assert found["3"].state == "open"
    assert (found["3"].ours, found["3"].absent, found["3"].total) == (0, 5, 45)
    assert found["1"].state == found["7-text"].state == "n/a"
    assert found["Figure 4"].total == 5 * 4
    check_golden("progress_empty.md", to_markdown(progress_table(list(found.values()), "results")))


def test_a_table_is_complete_with_a_figure_beside_every_published_one(made_up) -> None:
    records = measured(made_up, "3")
    found = progress(records)
    tables = {each.table: each for each in found}
    assert (tables["3"].ours, tables["3"].absent, tables["3"].state) == (40, 5, COMPLETE)
    assert tables["8"].state == "begun", "it has figures of Table 3"
    assert tables["9"].state == "open"
    said = commands(found)
    assert not any(line.startswith("3: ") for line in said)
    assert (
        "9: bitsweep run experiment=paper/table09_opt_ptb "
        "(one NVIDIA GPU; 24 GB of GPU memory, 48 GB of main memory)"
    ) in said
    assert progress(records[:-1]) != found
    check_golden("progress_begun.md", to_markdown(progress_table(found, "results")))


@pytest.mark.parametrize(("kind", "render"), [("csv", to_csv), ("md", to_markdown)])
def test_published_figures_stand_beside_ours(made_up, kind, render) -> None:
    records = [each for each in measured(made_up, "3") if each.cell.model == "opt-125m"]
    (table,) = [
        each
        for each in summary_tables(from_records(records))
        if each.name == "published_perplexity"
    ]
    check_golden(f"published_perplexity.{kind}", render(table))


def test_hours_are_those_of_the_records_if_they_say(made_up) -> None:
    """2.5 s at 125e6 parameters, so 0.02 s a million: what is missing of Table 4 by its sizes."""
    quantized = [
        made_up.record(method, "w4", "quantization", model="opt-125m", metrics=[], config=config)
        for method, config in (("rtn", {}), ("gptq", {"calib.sequences": 128}))
    ]
    suites = [
        made_up.record(method, "w4", model="opt-125m", metrics=[made_up.perplexity(9.0)])
        for method in ("none", "rtn", "gptq")
    ]
    found = {each.table: each for each in progress(quantized + suites)}
    millions = 560 + 1100 + 1700 + 3000 + 7100 + 176_000
    # Full precision: one stage. Two of RTN and six of GPTQ: two stages each.
    stages = 1 + 2 * (2 + 6)
    assert found["4"].hours == pytest.approx(stages * millions * 0.02 / 3600)
    assert found["13"].hours is None, "no record has its suite"


def test_hours_do_not_follow_from_small_models_or_parts_of_the_work(made_up) -> None:
    """A model of 4 million parameters, 4 windows of a text, and 16 calibration windows say none."""
    part = made_up.perplexity(9.0, notes={"limit": "max_windows=4"})
    for model, metric, sequences in (
        ("embedded", made_up.perplexity(9.0), 128),
        ("opt-125m", part, 128),
        ("opt-125m", made_up.perplexity(9.0), 16),
    ):
        config = {"calib.sequences": sequences}
        records = [
            made_up.record(method, "w4", stage, model=model, metrics=metrics, config=given)
            for method, given in (("none", {}), ("rtn", {}), ("gptq", config))
            for stage, metrics in (("quantization", []), ("perplexity", [metric]))
        ]
        assert {each.table: each for each in progress(records)}["4"].hours is None


def test_the_verb_prints_it_and_refuses_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["paper"]) == 0
    said = capsys.readouterr().out
    assert "Published tables in results" in said
    assert "3: bitsweep run experiment=paper/table03_opt_wikitext2 (one NVIDIA GPU;" in said
    (tmp_path / "file").touch()
    for place, words in (("nowhere", "there is no folder nowhere"), ("file", "file is a file")):
        assert cli.main(["paper", place]) == 2
        assert words in capsys.readouterr().err
