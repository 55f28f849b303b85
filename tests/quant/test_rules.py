"""What a user allows: refused when it cannot be, and named only where it is not the default."""

import pytest

from quant.rules import DAMP, RTN, RULES, STRICT, Rules


def test_the_defaults_allow_nothing_and_name_nothing() -> None:
    assert STRICT.given() == {}
    assert Rules(partial=True, few_tokens=DAMP).given() == {"partial": True, "few_tokens": DAMP}
    assert Rules(min_tokens=7).given() == {"min_tokens": 7}
    assert RULES == ("partial", "few_tokens", "min_tokens")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"few_tokens": "drop"}, "few_tokens='drop' is unknown; choose one of refuse, damp, rtn."),
        ({"min_tokens": 0}, "min_tokens=0 is not a number of tokens; use 1 or more"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        Rules(**given)  # type: ignore[arg-type]
    assert str(caught.value).startswith(sentence)
    assert Rules(few_tokens=RTN, min_tokens=1).given()
