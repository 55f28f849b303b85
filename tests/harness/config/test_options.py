"""From the keys of a part to its dataclass, or one sentence that names key, value and way out."""

from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING

from harness.config.hints import did_you_mean
from harness.config.options import build_options, words_for
from harness.errors import ConfigError


@dataclass(frozen=True)
class Options:
    damping: float = 0.01
    order: bool = False
    steps: int | None = None
    ladder: tuple[float, ...] = (0.1, 1.0)
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise ValueError(f"damping={self.damping} is negative; use 0 or more.")


@dataclass
class Needing:
    width: int = MISSING


def built(given: dict[str, object], *others: str) -> Options:
    return build_options(Options, given, "method", "mine.solver", others)


def test_values_take_the_types_of_the_dataclass() -> None:
    assert built({}) == Options()
    given = {"damping": 1, "order": "true", "steps": "3", "ladder": [1, 2], "names": {"a": "b"}}
    found = built(given)
    assert found == Options(1.0, True, 3, (1.0, 2.0), {"a": "b"})
    assert type(found.damping) is float
    assert type(found.ladder) is tuple


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"dampin": 1},
            "method.dampin=1 is not an option of mine.solver (did you mean damping?): it has "
            "damping, order, steps, ladder, names.",
        ),
        ({"damping": -1}, "method: method.damping=-1.0 is negative; use 0 or more."),
        ({"damping": float("nan")}, "method.damping=nan is not finite; use a finite number."),
    ],
)
def test_what_is_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(given)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("damping", "it takes a number."),
        ("order", "it takes true or false."),
        ("steps", "it takes a whole number or null."),
        ("ladder", "it takes a list such as [a,b]."),
    ],
)
def test_a_value_of_another_type_is_told_what_it_takes(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built({name: "word"})
    assert str(caught.value).startswith(f"method.{name}: ")
    assert str(caught.value).endswith(words)


def test_who_knows_an_option_is_said_and_what_has_no_value_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="leave it out, or use method=a or method=b"):
        built({"extra": 1}, "method=a", "method=b")
    with pytest.raises(ConfigError, match=r"suite\.mine\.width has no value.*width=VALUE"):
        build_options(Needing, {}, "suite.mine", "mine")


def test_words() -> None:
    assert words_for(dict[str, int]) == "it takes a mapping"
    assert words_for(str) == "it takes text"
    assert did_you_mean("latensy", ["perplexity", "latency"]) == " (did you mean latency?)"
    assert did_you_mean("zzz", ["perplexity", "latency"]) == ""
