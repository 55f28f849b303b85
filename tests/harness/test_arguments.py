"""The grammar of the command line: words in, values out, and what help says."""

from pathlib import Path

import pytest

from harness import arguments, cli
from harness.errors import ConfigError


def test_every_verb_of_the_grammar_is_carried_out() -> None:
    _, verbs = arguments.build()
    assert set(verbs) == set(cli.VERBS)


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "scheme=w4,w3", "method=rtn", "--config-dir", "mine"],
        ["scheme=w4,w3", "-m", "method=rtn", "--config-dir=mine"],
        ["--config-dir", "mine", "scheme=w4,w3", "method=rtn", "--multirun"],
        ["scheme=w4,w3", "--config-dir", "mine", "-m", "method=rtn"],
    ],
)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_options_may_stand_anywhere_among_overrides(verb: str, words: list[str]) -> None:
    options = arguments.parse([verb, *words])
    assert options.verb == verb
    assert options.overrides == ["scheme=w4,w3", "method=rtn"]
    assert (options.multirun, options.config_dir, options.cfg) == (True, Path("mine"), False)


@pytest.mark.parametrize(
    "override",
    ["seed=-1", "~suite", "suite=[a,b]", "+a=1", "a.b='x y=z'", "sweep=[{method: none}]", "a= -1"],
)
def test_overrides_pass_untouched(override: str) -> None:
    assert arguments.parse(["run", "-m", override]).overrides == [override]


def test_a_group_may_follow_help_and_an_override_may_not_be_taken_for_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert arguments.parse(["run"]).help is None
    assert arguments.parse(["run", "--help"]).help == ""
    assert arguments.parse(["plan", "-h", "scheme"]).help == "scheme"
    assert arguments.parse(["help", "run"]).help == ""
    assert cli.main(["run", "--help", "scheme=w4"]) == cli.OK
    assert "groups, each as GROUP=OPTION" in capsys.readouterr().out


def test_words_are_not_cut_short() -> None:
    for words in (["run", "--conf", "x"], ["run", "--multi"], ["report", "--ti", "x"]):
        with pytest.raises(ConfigError, match="is not an option"):
            arguments.parse(words)


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_help_names_every_option_of_its_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == cli.OK
    text = capsys.readouterr().out
    assert text.startswith(f"usage: bitsweep {verb} ")
    for action in arguments.build()[1][verb]._actions:
        for word in action.option_strings:
            assert word in text
        assert not action.help or action.help.split()[0] in text


def test_help_of_export_lists_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["export", "--help"])
    text = capsys.readouterr().out
    assert "gptq-v2             GPTQModel, vLLM" in text
    assert "compressed-tensors" in text


def test_help_comes_without_a_verb_and_says_that_one_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == cli.IMPOSSIBLE
    alone = capsys.readouterr().out
    assert cli.main(["--help"]) == cli.OK
    assert capsys.readouterr().out == alone
    assert all(f"\n    {verb} " in alone for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("run", "Quantize a model, measure it, print the table."),
        ("plan", "Show what `bitsweep run` with the same arguments would do"),
        ("fetch", "Bring and verify all that `bitsweep run` with the same arguments needs"),
    ],
)
def test_each_of_the_verbs_with_overrides_says_what_it_does_itself(
    verb: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert words in said
    assert said.count("groups, each as GROUP=OPTION") == 1
