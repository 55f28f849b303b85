"""What a plan says of its set before it runs: from rows in the store, or from an assumption."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.schema import CellConfig
from harness.paired.power import detectable_loss, detectable_shift
from harness.records.items import WINDOWS, make_items
from harness.records.store import Store
from harness.run.detectable import (
    ASSUMED_DISCORDANCE,
    MOST_READ,
    Measured,
    detectable_lines,
    measured,
    said_of,
)
from harness.run.planned import show_plan
from harness.suites.base import Sample
from tests.harness.cells import cell_of, plan_of
from tests.harness.paired.conftest import answers, figure, losses, record

Make = Callable[..., CellConfig]
CHOICES = Sample("choice", "accuracy", "documents", 100, share=True)
TEXT = Sample("text", "perplexity", "windows", 40, share=False)


def test_without_rows_the_share_of_changes_is_assumed_and_said() -> None:
    said = said_of(CHOICES, 100, Measured())
    loss = detectable_loss(100, ASSUMED_DISCORDANCE)
    assert loss is not None
    assert said == (
        f"with 100 documents a loss under {100 * loss:.1f} points cannot be seen (assumed: 10 % of "
        "answers change; no row of this model has been measured here)"
    )
    assert "is known once this model has been measured" in said_of(TEXT, 40, Measured())


def test_rows_of_the_model_replace_the_assumption() -> None:
    known = Measured(
        discordance={("choice", "accuracy"): [0.02, 0.3, 0.04]},
        spread={("text", "perplexity"): [0.01]},
    )
    loss, shift = detectable_loss(100, 0.04), detectable_shift(40, 0.01)
    assert loss is not None
    assert shift is not None
    said = said_of(CHOICES, 100, known)
    assert f"a loss under {100 * loss:.1f} points cannot be seen" in said
    assert "4.0 % of answers change, the median of 3 rows of this model here" in said
    said = said_of(TEXT, 40, known)
    assert f"with 40 windows a rise of perplexity under {100 * math.expm1(shift):.2g} %" in said
    assert "in one row of this model here" in said


@pytest.mark.parametrize(
    ("sample", "count", "said"),
    [
        (CHOICES, 4, "with 4 documents no loss of accuracy can be seen; use more"),
        (TEXT, 2, "with 2 windows no rise of perplexity can be seen; use more"),
        (CHOICES, None, "how many documents there are is known once"),
    ],
)
def test_what_cannot_be_seen_or_said(sample: Sample, count: int | None, said: str) -> None:
    known = Measured(spread={("text", "perplexity"): [0.01]})
    assert said_of(sample, count, known).startswith(said)


def test_the_store_is_asked_for_this_model_and_these_schemes(tiny_cell: Make) -> None:
    plan = plan_of(tiny_cell("scheme=w4"))
    print_of = {"model": plan.cell.model.fingerprint}
    store = Store(plan.cell.choices.results)

    def keep(method: str, scheme: str, lost: int, options: str, inputs: dict[str, str]) -> None:
        metric = figure("accuracy", "choice", answers(range(lost)))
        made = record(method, scheme, [metric], "zeroshot", options=options, model="tiny")
        store.write(made.model_copy(update={"inputs": inputs}))

    keep("none", "w16", 0, "", print_of)
    keep("rtn", "w3", 30, "", print_of)
    everything = measured(plan, "zeroshot", {"some": "settings"}, ["w4"])
    assert everything.discordance == {("choice", "accuracy"): [0.3]}  # the only row there is
    keep("rtn", "w4", 3, "", print_of)
    keep("gptq", "w4", 5, "", print_of)
    keep("gptq", "w4", 50, "of another model", {"model": "of the same name"})
    known = measured(plan, "zeroshot", {"some": "settings"}, ["w4"])
    assert sorted(known.discordance["choice", "accuracy"]) == [0.03, 0.05]
    assert known.counts == {("choice", "accuracy"): 100}
    assert measured(plan, "zeroshot", {"other": "settings"}, ["w4"]).counts == {}
    assert measured(plan, "perplexity", {}, ["w4"]) == Measured()


def test_no_more_records_are_read_than_a_plan_has_time_for(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny_cell("scheme=w4"))
    folder = plan.cell.choices.results / "cells"
    for number in range(MOST_READ + 20):
        (folder / f"tiny-rtn-w4-s{number}-x").mkdir(parents=True)
        (folder / f"tiny-rtn-w4-s{number}-x" / "zeroshot-y.json").write_text("{}")
    read: list[Path] = []

    def counted(path: Path) -> object:
        read.append(path)
        return record("rtn", "w4", [], "zeroshot")

    monkeypatch.setattr("harness.run.detectable.read_record", counted)
    measured(plan, "zeroshot", {}, ["w4"])
    assert len(read) == MOST_READ


def test_a_plan_prints_it_before_the_run_and_from_what_was_run(
    tiny_cell: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_cell("scheme=w4")
    show_plan([cell_of(config)])
    said = capsys.readouterr().out
    assert "what one comparison with full precision can show (80 % power, alpha 5 %" in said
    assert "documents: with 4 windows, what can be seen is known once this model has been" in said
    plan = plan_of(config)
    settings = plan.cell.keys.suites["perplexity"]
    for method, scheme, shift in (("none", "w16", 0.0), ("rtn", "w4", 0.01)):
        metric = figure("perplexity", "documents", losses(shift, windows=5))
        made = record(method, scheme, [metric], model="tiny")
        config_of = {**made.config, "suite": {"perplexity": settings}}
        inputs = {"model": plan.cell.model.fingerprint}
        Store(plan.cell.choices.results).write(
            made.model_copy(update={"inputs": inputs, "config": config_of})
        )
    show_plan([cell_of(config)])
    said = capsys.readouterr().out
    assert "documents: with 5 windows a rise of perplexity under" in said  # not 4: as measured


def test_models_of_which_the_same_is_known_share_a_line(tiny_cell: Make) -> None:
    plans = []
    for number in range(5):
        config = tiny_cell("scheme=w4")
        config.model.name = f"tiny{number}"
        plans.append(plan_of(config))
    _, line = detectable_lines(plans)
    assert line.startswith("  tiny0, tiny1, tiny2 and 2 more, documents: with 4 windows, ")


def test_full_precision_alone_has_nothing_to_be_compared_with(tiny_cell: Make) -> None:
    assert detectable_lines([plan_of(tiny_cell("method=none", "scheme=w16"))]) == []


def test_the_embedded_tasks_and_files_are_counted(tmp_path: Path) -> None:
    from harness.suites import perplexity, zeroshot
    from harness.suites.base import Facts

    file = tmp_path / "t.jsonl"
    file.write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n' * 7)
    config = zeroshot.Config(tasks=["embedded_choice", "piqa"], files={"t": str(file)})
    facts = Facts(key="suite.zeroshot", model="m")
    counts = {each.task: each.count for each in zeroshot.samples(config, facts)}
    assert counts == {"embedded_choice": 500, "piqa": None, "t": 7}
    counts = {e.task: e.count for e in zeroshot.samples(replace(config, limit=5), facts)}
    assert counts == {"embedded_choice": 5, "piqa": 5, "t": 5}
    texts = perplexity.Config(protocols=["embedded", "wikitext2", "c4"], max_windows=120)
    found = {each.task: each.count for each in perplexity.samples(texts, facts)}
    assert found == {"embedded": 120, "wikitext2": 120, "c4": 120}
    found = {e.task: e.count for e in perplexity.samples(replace(texts, max_windows=None), facts)}
    assert found == {"embedded": 200, "wikitext2": None, "c4": 256}


def test_a_spread_is_that_of_a_token_whatever_the_windows_hold() -> None:
    """Twice the tokens and twice the losses are the same figure."""
    from harness.paired.comparison import paired_changes

    def pair(scale: int) -> float | None:
        before = make_items(WINDOWS, "x", [scale * v for v in (3.0, 4.0, 5.0)], [scale * 2] * 3)
        after = make_items(WINDOWS, "x", [scale * v for v in (3.1, 4.3, 5.2)], [scale * 2] * 3)
        return paired_changes(before, after)[1]

    assert pair(1) == pytest.approx(0.05)  # of 0.05, 0.15 and 0.1 nats a token
    assert pair(7) == pytest.approx(0.05)
