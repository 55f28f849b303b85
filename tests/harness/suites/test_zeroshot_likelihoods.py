"""Which requests share a pass, and their likelihoods against one request at a time in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.suites.zeroshot_likelihoods import Asked, asked, likelihoods, passes
from harness.suites.zeroshot_model import View
from tests.harness.suites.byte_model import byte_model

IDS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def test_a_request_reads_all_but_the_last_token_and_is_cut_from_the_left() -> None:
    assert asked([1, 2, 3], [4, 5], 9) == Asked((1, 2, 3, 4), (4, 5))
    assert asked([1, 2, 3], [4, 5], 3) == Asked((2, 3, 4), (4, 5))
    assert asked([1], [2, 3, 4], 3) == Asked((1, 2, 3), (2, 3, 4))
    assert asked([1], [2, 3, 4], 3).start == 0


def test_choices_after_one_context_share_a_pass() -> None:
    requests = [
        asked([7, 8], [1], 9), asked([7, 8], [2], 9), asked([7, 9], [2], 9),
        asked([7, 8], [1, 3], 9), asked([7, 8], [1, 3, 5, 5], 9), asked([7, 8], [2, 3], 9),
    ]  # fmt: skip
    found = passes(requests)
    assert [group[0] for group in found] == [4, 5, 2]
    assert [set(group) for group in found] in (
        [{4, 3, 0, 1}, {5}, {2}], [{4, 3}, {5, 0, 1}, {2}],
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12), st.integers(1, 4))
def test_likelihoods_are_those_of_each_request_alone(pairs, batch_size) -> None:
    model = MODEL
    requests = [asked(prompt, target, 8) for prompt, target in pairs if len(target) <= 8]
    groups = passes(requests)
    assert sorted(number for group in groups for number in group) == list(range(len(requests)))
    view = View(model, "cpu")
    found = sorted(likelihoods(view.last_logits, requests, batch_size, "cpu"))
    assert [number for number, _, _ in found] == list(range(len(requests)))
    for (number, score, greedy), (prompt, target) in zip(found, pairs, strict=True):
        ids = [*prompt, *target][-9:]
        with torch.no_grad():
            rows = model(torch.tensor([ids[:-1]])).logits[0].double()[-len(target) :]
        scores = rows.log_softmax(-1)
        expected = sum(float(row[token]) for row, token in zip(scores, target, strict=True))
        assert score == pytest.approx(expected, rel=1e-5, abs=1e-5), number
        assert greedy == (rows.argmax(-1).tolist() == target)


MODEL = byte_model()


def test_only_the_positions_that_are_needed_go_through_the_head() -> None:
    seen = []
    hook = MODEL.lm_head.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape))
    requests = [asked([5] * 20, [1], 64), asked([6] * 18, [1, 2, 3], 64), asked([5] * 20, [2], 64)]
    list(likelihoods(View(MODEL, "cpu").last_logits, requests, 4, "cpu"))
    hook.remove()
    assert [tuple(shape) for shape in seen] == [(2, 3, 16)]


def test_a_model_without_a_choice_of_positions_gives_all_logits() -> None:
    class Plain(torch.nn.Module):
        device, config = torch.device("cpu"), MODEL.config

        def forward(self, input_ids, use_cache=False):
            return MODEL(input_ids=input_ids, use_cache=use_cache)

    requests = [asked([5, 6, 7], [1], 64), asked([5, 6], [1, 2, 3], 64)]
    kept = list(likelihoods(View(MODEL, "cpu").last_logits, requests, 4, "cpu"))
    whole = list(likelihoods(View(Plain(), "cpu").last_logits, requests, 4, "cpu"))
    assert [each[0] for each in kept] == [each[0] for each in whole]
    assert [each[1] for each in kept] == pytest.approx([each[1] for each in whole], rel=1e-6)
