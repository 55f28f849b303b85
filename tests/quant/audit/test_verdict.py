"""Verdicts on layers of known origin, and the rules one by one."""

from dataclasses import replace

import pytest
import torch

from quant.audit import verdict
from quant.audit.layer import Evidence
from quant.audit.verdict import judge
from tests.quant.audit.synthetic import confusion, evidence, make, table

SEEN = Evidence(
    weight_error=0.1,
    cosine=0.99,
    error=0.02,
    rounding_error=0.04,
    solver_error=0.01,
    rounded=0.8,
    solver_rounded=0.75,
    agreement=0.7,
    followed=0.8,
    same_as="damping 0.01",
    order=None,
    any_loop=None,
    any_loop_as=None,
    scaled=None,
    clipped=0.0,
    levels=16,
    of_levels=16,
    scale_spread=1.5,
    dead_columns=0,
    tokens=1000,
    rank=64,
    condition=100.0,
)


LOOP = {"order": "natural", "any_loop": 0.969, "any_loop_as": "a greedy loop's (GPFQ)"}


def test_layers_of_known_origin():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices
    try:
        found = confusion(450)
    finally:
        torch.set_num_threads(threads)
    print(table(found))
    assert all(sum(counts.values()) == 75 for counts in found.values())
    assert found["rounded"][verdict.ROUNDED] >= 74
    assert found["another base"] == {verdict.NOT_THIS_BASE: 75}
    assert found["solved on this text"] == {verdict.AS_GOOD: 75}
    assert found["solved, its codes drifted"] == {verdict.AS_GOOD: 75}
    assert found["a weaker solver on this text"] == {verdict.WORSE_THAN_SOLVER: 75}
    other = found["solved on other text"]
    assert set(other) <= {verdict.OTHER_DATA, verdict.WORSE_THAN_SOLVER}
    assert other[verdict.OTHER_DATA] >= 65  # the first column of a loop is not always telling


@pytest.mark.parametrize(
    ("changes", "name", "why"),
    [
        ({"cosine": 0.1}, verdict.NOT_THIS_BASE, "cosine of 0.10"),
        ({"rounded": 0.995}, verdict.ROUNDED, "99.5 % of the codes are the nearest levels"),
        ({"error": 0.05}, verdict.WORSE_THAN_ROUNDING, "1.25 times the error of rounding"),
        ({"followed": 0.991}, verdict.AS_GOOD, "; 2 times the error of its better settings"),
        (LOOP | {"followed": 0.991}, verdict.AS_GOOD, "99.1 % of the codes are what the solver"),
        (LOOP | {"error": 0.0104}, verdict.AS_GOOD, "1.04 times the solver's error"),
        (LOOP, verdict.OTHER_DATA, "in natural order, but at most 96.9 % of the codes follow this"),
        (LOOP | {"order": "act-order"}, verdict.OTHER_DATA, "corrected in act-order, but at most"),
        (LOOP | {"agreement": 0.985}, verdict.OTHER_DATA, "; 2 times the solver's error, 0.5"),
        (
            LOOP | {"any_loop": 0.971},
            verdict.WORSE_THAN_SOLVER,
            "; at most 97.1 % of the codes follow this text",
        ),
        (
            LOOP | {"any_loop": 0.991},
            verdict.WORSE_THAN_SOLVER,
            "; 99.1 % of the codes are a greedy",
        ),
        ({"followed": 0.5}, verdict.WORSE_THAN_SOLVER, "2 times the solver's error, 0.5 times"),
    ],
)
def test_the_first_rule_that_applies_decides(changes, name, why):
    found = judge(replace(SEEN, **changes))
    assert found.name == name
    assert why in found.why


def test_the_gain_lies_between_rounding_and_the_solver():
    assert SEEN.gain == pytest.approx((0.04 - 0.02) / (0.04 - 0.01))
    assert replace(SEEN, error=0.05).gain == pytest.approx(-1 / 3)
    assert replace(SEEN, solver_error=0.0399).gain is None  # nothing to gain


@pytest.mark.parametrize("damping", ["0.01", "0.05", "0.1"])
def test_damping_and_order_are_told_from_the_codes(damping):
    seen = [evidence(make("solved on this text", seed)) for seed in range(40, 80)]
    found = [each.same_as for each in seen if each.agreement > 0.999]
    assert any(words == f"damping {damping}" for words in found)
    assert any(words == f"damping {damping}, act-order" for words in found)
