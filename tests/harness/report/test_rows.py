"""Which figures a table shows: the newest, seeds together, different cells apart."""

import json
import math
import re
import statistics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.report.frame import from_records
from harness.report.rows import deviation, read_rows
from harness.report.variants import _difference

KEY = ("perplexity", "embedded_eval", "perplexity")


def rows_of(records):
    return read_rows(from_records(records))


def test_full_precision_first_then_bits_downward_and_methods_side_by_side(sweep) -> None:
    names = [(row.method, row.scheme) for row in rows_of(sweep).rows]
    schemes = ["w8", "w4", "w4g128", "w3", "w2"]
    assert names == [("none", "w16")] + [(m, s) for s in schemes for m in ("rtn", "gptq")]


def test_a_figure_measured_again_replaces_the_older_one(made_up) -> None:
    old = made_up.record(metrics=[made_up.perplexity(9.0)], key="a" * 64)
    new = made_up.record(
        metrics=[made_up.perplexity(6.0)], key="b" * 64, started_at="2026-12-01T00:00:00+00:00"
    )
    for records in ([old, new], [new, old]):
        found = rows_of(records)
        assert [row.figures[KEY].value for row in found.rows] == [6.0]
        assert found.notes == ["1 older figure of the same cells, measured again since: not shown."]


def test_a_failure_counts_until_its_suite_succeeds(made_up) -> None:
    error = {"stage": "perplexity", "type": "OutOfMemoryError", "message": "no room"}
    early, late = "2026-01-01T00:00:00+00:00", "2026-12-01T00:00:00+00:00"

    def failed(when):
        return made_up.record(error=error, key="a" * 64, started_at=when)

    def fine(when):
        return made_up.record(metrics=[made_up.perplexity(6.0)], started_at=when)

    (recovered,) = rows_of([failed(early), fine(late)]).rows
    assert not recovered.failures
    assert KEY in recovered.figures
    (broken,) = rows_of([fine(early), failed(late)]).rows
    assert broken.failures == {"perplexity": "perplexity: OutOfMemoryError: no room"}
    assert KEY not in broken.figures


def test_seeds_become_one_row_with_mean_and_spread(made_up) -> None:
    values = [5.0, 5.2, 5.5]
    records = [
        made_up.record(
            "gptq",
            metrics=[made_up.perplexity(value, 0.1)],
            seed=seed,
            config={"calib.seed": seed},
        )
        for seed, value in enumerate(values)
    ]
    (row,) = rows_of(records).rows
    figure = row.figures[KEY]
    assert row.seeds == (0, 1, 2)
    assert figure.value == pytest.approx(sum(values) / 3)
    mean = sum(values) / 3
    assert figure.spread == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
    assert figure.stderr == pytest.approx(0.1)  # the seeds share their text


def test_cells_of_one_name_but_other_settings_stay_apart(made_up) -> None:
    records = [
        made_up.record(
            "gptq", metrics=[made_up.perplexity(5.0 + n / 100)], config={"calib.sequences": n}
        )
        for n in (16, 64)
    ]
    assert [row.label for row in rows_of(records).rows] == [
        "GPTQ sequences=16",
        "GPTQ sequences=64",
    ]


def test_options_tell_rows_apart(made_up) -> None:
    plain = made_up.record("gptq", metrics=[made_up.perplexity(5.0)])
    ordered = made_up.record(
        "gptq",
        metrics=[made_up.perplexity(4.9)],
        config={"method.act_order": True},
        options="act-order",
    )
    assert [row.label for row in rows_of([ordered, plain]).rows] == ["GPTQ", "GPTQ act-order"]


def test_records_without_labels_are_named_by_method_and_settings(made_up) -> None:
    plain = made_up.record("gptq", metrics=[made_up.perplexity(5.0)], label=None)
    ordered = made_up.record(
        "gptq", metrics=[made_up.perplexity(4.9)], config={"method.act_order": True}, label=None
    )
    names = ["gptq act_order=False", "gptq act_order=True"]
    assert [row.label for row in rows_of([ordered, plain]).rows] == names


def test_older_records_of_a_cell_take_the_names_of_newer_ones(made_up) -> None:
    config = {"method.act_order": True}
    old = made_up.record("gptq", metrics=[made_up.perplexity(5.0)], config=config, label=None)
    new = made_up.record(
        "gptq", suite="latency", metrics=made_up.latencies(True), config=config, options="act-order"
    )
    (row,) = rows_of([old, new]).rows
    assert row.label == "GPTQ act-order"
    assert {suite for suite, _, _ in row.figures} == {"perplexity", "latency"}


def test_methods_that_see_no_data_stand_before_those_that_do(made_up) -> None:
    records = [
        made_up.record(method, metrics=[made_up.perplexity(5.0)], label=label)
        for method, label in (("gptq", "AAA"), ("rtn", "ZZZ"), ("other", "MMM"))
    ]
    assert [row.label for row in rows_of(records).rows] == ["MMM", "ZZZ", "AAA"]


def test_artifacts_of_one_key_are_told_apart(made_up) -> None:
    one, other = (
        record.model_copy(update={"inputs": {"artifact": digit * 64}})
        for record, digit in (
            (made_up.record(metrics=[made_up.perplexity(6.0)], key="a" * 64), "1"),
            (made_up.record(metrics=[made_up.accuracy("piqa", 0.5)], key="b" * 64), "2"),
        )
    )
    (note,) = rows_of([one, other]).notes
    assert "figures are of 2 artifacts of one key (11111111, 22222222)" in note
    assert rows_of([one]).notes == []


def test_two_models_of_one_name_keep_their_figures(made_up) -> None:
    def record(model: str, name: str = "local", value: float = 5.0):
        figures, hashes = [made_up.perplexity(value)], {"model": model * 64}
        return made_up.record(model=name, metrics=figures, inputs=hashes, cell_key=model * 64)

    found = rows_of([record("a"), record("b", value=9.0), record("c", "mine")])
    shown = [(row.model, row.figures[KEY].value) for row in found.rows]
    assert shown == [("local-aaaaaaaa", 5.0), ("local-bbbbbbbb", 9.0), ("mine", 5.0)]
    assert found.notes == []
    assert [row.model for row in rows_of([record("a"), record("a")]).rows] == ["local"]


def test_mixtures_of_one_name_are_told_apart_in_few_words() -> None:
    def config(name: str, count: int) -> str:
        layers = {f"model.layers.{index}.{name}": "w4g64" for index in range(count)}
        return json.dumps({"scheme": {"bits": 3, "layers": layers}})

    few = {config("up", 1), config("down", 1)}
    assert _difference(config("up", 1), few) == "model.layers.0.down=null, model.layers.0.up=w4g64"
    many = {config("up", 9), config("down", 9)}
    said = {_difference(each, many) for each in many}
    assert len(said) == 2
    assert all(re.fullmatch(r"layers=[0-9a-f]{8}", each) for each in said)


@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False, min_value=-1e150, max_value=1e150),
        min_size=2,
        max_size=12,
    )
)
@example([0.1, 0.1, 0.1])
@example([3.0757, 3.0758, 3.0761])
@example([1e-320, 5e-324])
def test_a_deviation_is_the_one_of_statistics(values) -> None:
    assert deviation(values) == statistics.stdev(values)


def test_a_deviation_of_what_overflowed_is_no_number() -> None:
    assert math.isnan(deviation([1.0, math.inf]))
