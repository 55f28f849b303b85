"""Figures and their intervals, held against scipy and arithmetic by hand; limits that are none."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from harness.errors import ConfigError
from harness.recommend.limits import (
    ACCURACY,
    CRITERIA,
    KLD,
    RATIO,
    Limits,
    exact_share,
    measured,
)
from harness.records.items import values_of, weights_of
from harness.report.frame import from_records
from harness.report.pareto import quality_columns
from harness.report.rows import Row, read_rows
from harness.suites.find import declared_tables
from tests.harness.paired.conftest import figure, losses, record
from tests.harness.recommend.conftest import cell, divergence, sweep


def of(records, criterion):
    rows = read_rows(from_records(records)).rows
    shown = quality_columns(rows, declared_tables(rows, {}))
    return {f"{row.label} {row.scheme}": measured(criterion, row, rows, shown) for row in rows}


def test_divergence_has_the_interval_of_its_error_and_full_precision_none() -> None:
    found = of(sweep(), KLD)
    (one,) = found["GPTQ w4"]
    assert (one.task, one.value) == ("embedded", 0.001)
    assert one.low == pytest.approx(0.001 - 1.959964 * 0.0001)
    assert one.high == pytest.approx(0.001 + 1.959964 * 0.0001)
    (full,) = found["full prec. w16"]
    assert (full.value, full.low, full.high) == (0.0, 0.0, 0.0)


def test_a_divergence_is_never_below_zero() -> None:
    records = [record("rtn", "w4", [divergence(0.001, 0.01)], "divergence")]
    ((one,),) = of(records, KLD).values()
    assert one.low == 0


def test_a_ratio_is_of_the_same_windows_and_its_interval_of_paired_losses() -> None:
    found = of(sweep(), RATIO)
    (one,) = found["RTN w4"]
    base, other = losses(0.0), losses(0.05)
    mean = (values_of(other) - values_of(base)).sum() / weights_of(base).sum()
    assert one.value == pytest.approx(math.exp(mean))
    # the delta method of a mean of paired differences, in nats a token
    differences = (values_of(other) - values_of(base)) / 50
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    assert math.log(one.low) == pytest.approx(mean - 1.96 * error, abs=0.3 * error)
    assert math.log(one.high) == pytest.approx(mean + 1.96 * error, abs=0.3 * error)
    assert [each.value for each in found["full prec. w16"]] == [1.0]


def test_a_ratio_on_other_windows_is_none() -> None:
    other = figure("perplexity", "embedded", losses(0.1, ids="others"))
    records = [*cell("none", "w16", shift=0.0), record("rtn", "w4", [other])]
    assert of(records, RATIO)["RTN w4"] == []


def test_a_ratio_of_records_without_windows_has_no_interval() -> None:
    records = []
    for method, scheme, value in (("none", "w16", 10.0), ("rtn", "w4", 11.0)):
        plain = figure("perplexity", "embedded", None, value=value, notes={"token_hash": "a"})
        records.append(record(method, scheme, [plain]))
    ((_,), (one,)) = of(records, RATIO).values()
    assert (one.value, one.low, one.high) == (pytest.approx(1.1), None, None)


@pytest.mark.parametrize(("right", "count"), [(0, 20), (20, 20), (7, 20), (90, 100)])
def test_shares_have_the_exact_interval(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, "exact")
    assert exact_share(right, count) == pytest.approx((expected.low, expected.high))


def test_accuracy_of_documents_has_the_exact_interval() -> None:
    (one,) = of(sweep(), ACCURACY)["RTN w4"]
    assert one.value == pytest.approx(0.82)
    assert (one.low, one.high) == pytest.approx(exact_share(82, 100))


def test_several_figures_of_a_task_are_told_apart() -> None:
    metrics = [figure(name, "choice", None) for name in ("accuracy", "acc_norm")]
    ((one, two),) = of([record("rtn", "w4", metrics, "zeroshot")], ACCURACY).values()
    assert (one.task, two.task) == ("choice accuracy", "choice acc_norm")


def test_the_worst_of_several_tasks() -> None:
    (one,) = of(sweep(), ACCURACY)["RTN w4"]
    (two,) = of(sweep(), ACCURACY)["GPTQ w3"]
    assert ACCURACY.worst([one, two]) is two
    assert KLD.worst([one, two]) is one  # of what should be low, the highest


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_gb": 0}, "--max-gb 0 leaves no room"),
        ({"max_ppl_ratio": math.nan}, "--max-ppl-ratio nan is no limit"),
        ({"max_gb": math.inf}, "--max-gb inf is no limit"),
        ({"context": -5}, "--context -5 leaves no room"),
        ({"max_kld": -1.0}, "no divergence is"),
        ({"max_ppl_ratio": 0.05}, "a ratio such as 1.05 allows 5 % more"),
        ({"min_accuracy": 60.0}, "use a number from 0 to 1, as in 0.6"),
    ],
)
def test_limits_that_are_none_are_refused(limits: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Limits(**limits)


def test_every_criterion_names_a_suite_that_is_there() -> None:
    rows: list[Row] = read_rows(from_records(sweep())).rows
    assert {each.suite for each in CRITERIA} <= set().union(*(row.suites for row in rows))
    assert np.isfinite([each.value for row in of(sweep(), KLD).values() for each in row]).all()
