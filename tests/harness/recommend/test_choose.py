"""The choice among hand-made cells: limits, the best, and what no test separates from it."""

import pytest

from harness.paired.exact import holm, mcnemar
from harness.recommend.choose import (
    MEMORY,
    QUALITY,
    SPEED,
    Choice,
    bytes_text,
    candidates,
    choose,
    ranking,
)
from harness.recommend.limits import ACCURACY, KLD, RATIO, Limits
from harness.records.record import Failure
from harness.report.frame import from_records
from harness.report.pareto import quality_columns
from harness.report.rows import read_rows
from harness.suites.find import declared_tables
from tests.harness.paired.conftest import figure, losses, record
from tests.harness.recommend.conftest import cell, divergence, sweep


def chosen(records, prefer: str = QUALITY, context: int = 1000, **limits) -> Choice:
    asked = Limits(**limits)
    rows = read_rows(from_records(records)).rows
    declared = declared_tables(rows, {})
    by = ranking(rows, declared, asked)
    assert by is not None
    found = candidates(rows, declared, asked, context, by, prefer)
    return choose(found, by, [each.key for each in quality_columns(rows, declared)], prefer)


def names(choice: Choice) -> tuple[str | None, str | None]:
    """Of the recommended cell and of the best."""
    return tuple(
        None if at is None else choice.candidates[at].name
        for at in (choice.recommended, choice.best)
    )  # type: ignore[return-value]


def of(choice: Choice, name: str):
    return next(each for each in choice.candidates if each.name == name)


def test_a_smaller_cell_that_no_test_separates_is_as_good() -> None:
    choice = chosen(sweep())
    assert names(choice) == ("GPTQ w4", "full prec. float32")
    assert choice.ranked_by is KLD
    assert choice.as_good(choice.recommended)
    assert not choice.as_good(choice.candidates.index(of(choice, "RTN w4")))


def test_the_tests_are_those_of_pairs_corrected_over_all_of_them() -> None:
    choice = chosen(sweep())
    assert choice.tested == 6  # three cells, perplexity and accuracy
    found = {
        (index, each.key[2]): each.result for index, those in choice.evidence.items()
        for each in those
    }  # fmt: skip
    rtn = choice.candidates.index(of(choice, "RTN w4"))
    assert found[rtn, "accuracy"].p == pytest.approx(mcnemar(8, 0))
    assert (found[rtn, "accuracy"].lost, found[rtn, "accuracy"].difference) == (8, -0.08)
    corrected = holm([each.p for each in found.values()])
    assert [each.adjusted for each in found.values()] == pytest.approx(corrected)


def test_limits_leave_cells_out_with_their_reasons() -> None:
    choice = chosen(sweep(), max_gb=0.02, max_kld=0.005)
    assert names(choice) == ("GPTQ w4", "GPTQ w4")
    full, gptq, rtn, three = (
        of(choice, name) for name in ("full prec. float32", "GPTQ w4", "RTN w4", "GPTQ w3")
    )
    assert gptq.memory == 16e6 + 1000 * 1000 + 5e5
    assert full.reasons == ("too big: 65.5 MB > 20.0 MB",)
    assert rtn.reasons == ("too far: KL divergence of embedded 0.0100 > 0.005",)
    assert three.reasons == ("too far: KL divergence of embedded 0.0500 > 0.005",)
    assert gptq.fits
    assert not any(each.fits for each in (full, rtn, three))


def test_the_cache_of_a_longer_context_can_be_too_big() -> None:
    assert names(chosen(sweep(), max_gb=0.02, context=1000))[0] == "GPTQ w4"
    longer = chosen(sweep(), max_gb=0.02, context=4000)
    assert names(longer)[0] == "GPTQ w3"  # 12 + 4 + 0.5 MB
    assert of(longer, "GPTQ w4").reasons == ("too big: 20.5 MB > 20.0 MB",)


def test_what_is_preferred_decides_among_those_that_keep_to_the_limits() -> None:
    assert names(chosen(sweep(), MEMORY, max_kld=0.1))[0] == "GPTQ w3"
    assert names(chosen(sweep(), MEMORY, max_kld=0.02))[0] == "GPTQ w4"  # as small as RTN, nearer
    assert names(chosen(sweep(), SPEED, max_kld=0.02))[0] == "RTN w4"


def test_of_equally_small_cells_the_fastest_is_recommended() -> None:
    records = [
        *cell("none", "w16", 64, 3.0, shift=0.0, lost=()),
        *cell("rtn", "w4", 16, 1.5, kl=0.002, shift=0.0005, lost=(3, 95)),
        *cell("gptq", "w4", 16, 2.0, kl=0.001, shift=0.0004, lost=(4,)),
    ]
    choice = chosen(records)
    assert names(choice)[0] == "RTN w4"
    assert all(choice.as_good(index) for index in range(3))


def test_a_limit_within_the_interval_is_remarked() -> None:
    choice = chosen(sweep(), max_kld=0.0011)
    (remark,) = of(choice, "GPTQ w4").remarks
    assert remark == ("KL divergence of embedded keeps to 0.0011, but its interval reaches 0.00120")
    assert of(choice, "GPTQ w4").fits
    assert chosen(sweep(), max_kld=0.0013).candidates[1].remarks == ()


def test_accuracies_have_to_reach_their_limit_on_every_task() -> None:
    choice = chosen(sweep(), min_accuracy=0.85)
    assert choice.ranked_by is ACCURACY
    assert of(choice, "RTN w4").reasons == ("too far: accuracy of choice 82.0 % < 85 %",)
    assert of(choice, "GPTQ w4").remarks[0].startswith("accuracy of choice keeps to 85 %")


def test_ratios_order_cells_where_they_are_asked() -> None:
    choice = chosen(sweep(), max_ppl_ratio=1.06)
    assert choice.ranked_by is RATIO
    assert of(choice, "GPTQ w3").reasons[0].startswith("too far: perplexity over full precision")
    assert of(choice, "RTN w4").fits


def test_a_cell_that_was_not_measured_is_not_recommended() -> None:
    records = [each for each in sweep()
               if (each.cell.method, each.suite) != ("gptq", "divergence")]  # fmt: skip
    choice = chosen(records, max_kld=0.02)
    assert of(choice, "GPTQ w4").lacking == ("divergence",)
    assert names(choice)[0] == "full prec. float32"
    untimed = [each for each in sweep() if (each.cell.method, each.suite) != ("gptq", "latency")]
    assert of(chosen(untimed, max_gb=1.0), "GPTQ w4").lacking == ("latency",)
    assert of(chosen(untimed, SPEED), "GPTQ w4").lacking == ("latency",)
    assert of(chosen(untimed), "GPTQ w4").lacking == ()


def test_a_figure_on_another_sample_orders_nothing() -> None:
    fewer = divergence(1e-6, 1e-7).model_copy(update={"n": 50})
    other = [*cell("rtn", "w3", 8, 1.0), record("rtn", "w3", [fewer], "divergence")]
    choice = chosen([*sweep(), *other], MEMORY, max_kld=0.1)
    assert of(choice, "RTN w3").reasons == (
        "other sample: KL divergence of embedded is on 50 tokens that are not those of the column: "
        "do not compare",
    )
    assert names(choice)[0] == "GPTQ w3"


def test_a_failed_suite_is_no_lacking_one() -> None:
    failed = record("rtn", "w3", [], "divergence")
    failed = failed.model_copy(
        update={
            "status": "failed",
            "error": Failure(stage="divergence", type="OutOfMemoryError", message="2 GB"),
        }
    )
    choice = chosen([*sweep(), failed], max_kld=0.02)
    assert of(choice, "RTN w3").reasons == ("failed: divergence",)
    assert of(choice, "RTN w3").lacking == ()


def test_nothing_that_keeps_to_the_limits_is_no_choice() -> None:
    assert names(chosen(sweep(), max_gb=0.001)) == (None, None)


def test_without_values_of_single_units_the_best_is_taken_and_nothing_called_as_good() -> None:
    def plain(method: str, scheme: str, kl: float):
        return [
            record(method, scheme, [divergence(kl, kl / 10)], "divergence"),
            record(method, scheme, [figure("perplexity", "embedded", None)]),
        ]

    choice = chosen([*plain("gptq", "w4", 0.001), *plain("gptq", "w3", 0.0011)])
    assert names(choice) == ("GPTQ w4", "GPTQ w4")
    assert choice.tested == 0
    assert not choice.as_good(1)


def test_divergence_is_tested_where_nothing_else_is() -> None:
    def only(method: str, scheme: str, shift: float):
        items = losses(shift).model_copy(update={"exponential": False})
        metric = divergence(0.001 + shift, 0.0001, items)
        return record(method, scheme, [metric], "divergence")

    choice = chosen([only("gptq", "w4", 0.0004), only("gptq", "w3", 0.3)])
    assert choice.tested == 1
    assert names(choice) == ("GPTQ w4", "GPTQ w4")
    near = chosen([only("gptq", "w4", 0.0004), only("gptq", "w3", 0.0005)])
    assert names(near) == ("GPTQ w3", "GPTQ w4")


def test_without_sizes_fewer_bits_are_smaller() -> None:
    records = [each for each in sweep() if each.suite != "latency"]
    assert names(chosen(records)) == ("GPTQ w4", "full prec. float32")


def test_bytes_are_written_in_the_unit_that_reads_best() -> None:
    assert [bytes_text(each) for each in (5.09e6, 7.314e9)] == ["5.09 MB", "7.31 GB"]
