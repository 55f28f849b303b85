"""Calibration windows: which are refused, and how they are put into batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.calibrate.windows import check_windows, make_batches
from quant.errors import CalibrationError
from tests.quant.architectures import VOCABULARY, random_windows, tiny_model

GOOD = torch.tensor([3, 4, 5])


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([], r"no calibration window: .*longer text.*method=rtn"),
        ([GOOD, GOOD[:1]], r"window 1 is too short: 1 token\(s\), at least 2"),
        ([GOOD, GOOD, torch.tensor([3, VOCABULARY])], rf"window 2 holds token id {VOCABULARY}, "),
        ([torch.tensor([-1, 3])], r"window 0 holds token id -1, .*tokenizer of this model"),
        ([torch.full((65,), 3)], r"window 0 has 65 tokens but the model has 64 positions"),
        ([torch.tensor([0.5, 1.0])], r"window 0 is torch\.float32 of shape \[2\]"),
        ([GOOD[None]], r"window 0 is torch\.int64 of shape \[1, 3\]"),
    ],
)
def test_unfit_windows_are_refused_with_the_next_step(windows: list, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        check_windows(windows, tiny_model("opt"))


@pytest.mark.parametrize("name", ["opt", "gpt2", "bloom", "llama"])
def test_the_largest_windows_that_a_model_can_read_pass(name: str) -> None:
    check_windows(random_windows(2, length=64), tiny_model(name))


@given(st.lists(st.integers(2, 9), max_size=30), st.integers(1, 40))
def test_batches_hold_every_window_once_and_unpadded(lengths: list[int], budget: int) -> None:
    windows = [torch.full((length,), index) for index, length in enumerate(lengths)]
    batches = make_batches(windows, budget)
    assert sorted(i for batch in batches for i in batch.windows) == list(range(len(windows)))
    for batch in batches:
        assert batch.tokens.numel() <= budget or len(batch.windows) == 1
        for row, index in enumerate(batch.windows):
            assert torch.equal(batch.tokens[row], windows[index])
    # As few batches as the budget allows.
    for length in set(lengths):
        used = [b for b in batches if b.tokens.shape[1] == length]
        per_batch = max(1, budget // length)
        assert len(used) == -(-lengths.count(length) // per_batch)
