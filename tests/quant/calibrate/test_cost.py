"""The stage meter: seconds add up, peaks belong to their stage."""

import time

import pytest
import torch

from quant.calibrate.cost import StageCost, StageMeter
from quant.memory.heaps import own_zeros

MEBIBYTE = 1 << 20


def test_a_peak_inside_a_stage_is_seen_there_and_only_there() -> None:
    with StageMeter(torch.device("cpu")) as meter:
        with meter.stage("small"):
            time.sleep(0.03)
        with meter.stage("large"):
            # New pages: what the process freed before could hold a tensor of torch.ones.
            held = own_zeros((64 * MEBIBYTE,), torch.uint8).fill_(1)
            time.sleep(0.2)
            del held
        with meter.stage("small"):
            time.sleep(0.03)
    small, large = meter.costs()
    assert (small.name, large.name) == ("small", "large")
    assert small.seconds >= 0.06
    assert large.seconds >= 0.2
    if "sampled" not in large.memory:
        pytest.skip(f"peaks are not per stage here: {large.memory}")
    assert small.peak_bytes is not None
    assert large.peak_bytes is not None
    assert large.peak_bytes - small.peak_bytes > 50 * MEBIBYTE


def test_a_failing_stage_is_still_counted_and_ends() -> None:
    with StageMeter(torch.device("cpu")) as meter:
        with pytest.raises(KeyError), meter.stage("one"):
            raise KeyError
        with meter.stage("two"):
            pass
    assert [cost.name for cost in meter.costs()] == ["one", "two"]


def test_work_of_another_thread_is_told_once_and_added_to_an_earlier_run_s() -> None:
    earlier = StageCost("write", 2.0, None, "", background=30.0)
    begin = time.perf_counter()
    with StageMeter(torch.device("cpu")) as meter:
        meter.add([earlier])
        with meter.stage("write"):
            pass
        meter.add_background("write", 4.0)
        assert [cost.background for cost in meter.since_last()] == [4.0]
        assert [cost.background for cost in meter.since_last()] == [0.0]
        meter.add_background("write", 5.0)
        (told,) = meter.since_last()
    assert told.background == pytest.approx(5.0)
    (whole,) = meter.costs()
    assert whole.background == pytest.approx(39.0)
    assert 2.0 < whole.seconds < 2.0 + time.perf_counter() - begin


def test_stages_do_not_nest() -> None:
    with (
        StageMeter(torch.device("cpu")) as meter,
        pytest.raises(RuntimeError, match="'b' cannot begin inside stage 'a'"),
        meter.stage("a"),
        meter.stage("b"),
    ):
        pass
