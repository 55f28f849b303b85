"""The grammar of the command line: one parser for all verbs, with the text of their help.

A wrong command line is a ConfigError of one sentence. Overrides (KEY=VALUE) are passed to Hydra
unchanged. Nothing heavy is imported, so that help is instant.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness import completion
from harness.arguments_of_results import (
    RESULTS,
    add_compare,
    add_config_dir,
    add_help,
    add_paper,
    add_push,
    add_recommend,
    add_report,
    add_status,
    add_sync,
)
from harness.errors import ConfigError

__all__ = ["RESULTS", "build", "parse"]

PROGRAM = "bitsweep"
WIDTH = 100  # of help, at most
ABOUT = (
    "What does it cost, in accuracy, time and memory, to run a language model at a given bit width?"
)
FIRST_STEPS = """\
first steps:
  bitsweep run experiment=quickstart     the first sweep, about three minutes on two cores
  bitsweep run --help                    every choice a run has
  bitsweep VERB --help                   what any other verb takes
"""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Texts keep their lines; verbs are listed without the word VERB above them."""

    def __init__(self, prog: str) -> None:
        width = min(WIDTH, shutil.get_terminal_size().columns)
        super().__init__(prog, max_help_position=30, width=width)

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        verbs = isinstance(action, argparse._SubParsersAction)
        return text.partition("\n")[2] if verbs else text


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ConfigErrors of one sentence.

    late  makes the text at the end of the help; called only if the help is shown.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=Formatter, **options)
        self.late: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.late is not None:
            self.epilog = self.late()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        wanting = re.fullmatch(r"argument (?:\S+/)?(\S+): expected one argument", message)
        if wanting:
            option = wanting[1]
            needed = str(self._option_string_actions[option].help).partition(";")[0]
            raise ConfigError(f"{option} needs {needed}.")
        raise ConfigError(f"{message}; `{self.prog} --help` shows how it is used.")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the verb and its arguments; `verb` is None if there is none.

    Raises ConfigError for a wrong command line, SystemExit(0) after printing help or the version.
    """
    parser, verbs = build()
    words = list(arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb is not None and verb not in verbs:
        raise ConfigError(f"{verb} is not a verb: use one of {', '.join(verbs)}.")
    options, rest = parser.parse_known_args(words)
    overrides: list[str] | None = getattr(options, "overrides", None)
    for word in (each for each in rest if each.startswith("-")):
        values = "" if overrides is None else "; values are set with KEY=VALUE, without dashes"
        place = PROGRAM if verb is None else f"{PROGRAM} {verb}"
        of = "bitsweep" if verb is None else "this verb"
        raise ConfigError(f"{word} is not an option of {of}: `{place} --help` lists them{values}.")
    if overrides is not None:
        options.overrides = [*overrides, *rest]  # overrides after an option are in `rest`
    elif rest:
        raise ConfigError(_too_many(verbs[str(verb)], rest))
    return options


def build() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and the parsers of verbs by name."""
    parser = Parser(prog=PROGRAM, description=ABOUT, usage="%(prog)s VERB [arguments]")
    parser.epilog = FIRST_STEPS
    add_help(parser)
    parser.add_argument("-V", "--version", action=_Version, help="print the version")
    verbs = parser.add_subparsers(
        dest="verb", title="verbs", metavar="VERB", prog=PROGRAM, parser_class=Parser
    )
    adders: dict[str, tuple[str, Callable[[Parser], None]]] = {
        "run": (
            "quantize, measure, print the table; never repeat finished work",
            _add_request,
        ),
        "plan": (
            "show what run would do, and what is done already",
            _add_request,
        ),
        "fetch": (
            "bring and verify all that a plan needs, so that runs are offline",
            _add_fetch,
        ),
        "status": ("show what sweeps do now, from any shell or node", add_status),
        "report": (
            "make tables and plots again from records",
            add_report,
        ),
        "compare": (
            "tell whether two rows, or the rows of two folders, really differ",
            add_compare,
        ),
        "recommend": (
            "choose a cell under limits of memory and loss, with the evidence",
            add_recommend,
        ),
        "sync": ("make a wandb project again from records, runs and report page", add_sync),
        "paper": ("show which published tables are complete, and what the others need", add_paper),
        "export": ("write a quantized model in a format of other tools", _add_export),
        "push": ("send a quantized model with its card to a hub", add_push),
        "inspect": ("show what a quantized checkpoint holds, whoever made it", _add_inspect),
        "audit": (
            "hold a quantized checkpoint against its base: what was really done to it",
            _add_audit,
        ),
        "doctor": (
            "show what this machine has, and what is missing",
            add_help,
        ),
    }
    for name, (about, add) in adders.items():
        add(verbs.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}."))
    return parser, dict(verbs.choices)


def _add_request(parser: Parser) -> None:
    """Add the arguments of run and plan; cli prints their help, which includes a user's folder."""
    parser.set_defaults(parser=parser)
    overrides = parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="a value, or GROUP=OPTION"
    )
    _complete(overrides, completion.overrides)
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="sweep over overrides with several values (scheme=w4,w3)",
    )
    add_config_dir(parser, "a folder of yours laid out like conf/, whose options are added")
    parser.add_argument(
        "--cfg",
        action="store_true",
        help="print the composed configuration of every cell and stop",
    )
    group = parser.add_argument(
        "-h",
        "--help",
        nargs="?",
        const="",
        metavar="GROUP",
        help="print this text, or the options and keys of one group",
    )
    _complete(group, completion.group_names)


def _add_fetch(parser: Parser) -> None:
    _add_request(parser)
    parser.add_argument(
        "--update",
        action="store_true",
        help="take what the hub has now, not the commits of the lock file",
    )


def _add_export(parser: Parser) -> None:
    parser.description = (
        "Write a quantized model again in a format that other tools load: the same codes, scales "
        "and\nzero-points. docs/checkpoints.md says which format holds what."
    )
    parser.late = _formats
    parser.add_argument(
        "artifact", type=Path, metavar="ARTIFACT", help="a folder under results/artifacts, or any"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder or file to write")
    format = parser.add_argument(
        "--format", required=True, metavar="FORMAT", help="a format; those below are known"
    )
    _complete(format, completion.formats)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model that Bitsweep wrote to OUT before"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files that come with the model: read them first",
    )
    _add_levels(parser)
    add_help(parser)


def _formats() -> str:
    from harness.checkpoint_verbs import format_readers

    readers = format_readers()
    width = max(map(len, readers))
    lines = [f"  {name:{width}}  {who}" for name, who in readers.items()]
    return "\n".join(["formats, and who reads them:", *lines])


def _add_inspect(parser: Parser) -> None:
    parser.description = (
        "Show what a quantized checkpoint holds, whoever made it: format, producer, scheme and\n"
        "zero-points. Every tensor is read and checked. Of a GGUF file: the types of its tensors,\n"
        "their bits per weight, and whether `bitsweep run` reads it."
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="the folder of a quantized model, or a GGUF file",
    )
    _add_levels(parser)
    add_help(parser)


def _add_audit(parser: Parser) -> None:
    parser.description = (
        "Hold every layer of a quantized checkpoint, whoever made it, against its base: its codes\n"
        "beside rounding to nearest and beside GPTQ on the same grids, on the Hessians of a text.\n"
        "docs/audit.md says what the verdicts mean. Exit status 3: layers contradict the claim."
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="the folder of a quantized model, or a GGUF file",
    )
    parser.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="the folder or GGUF file of the full-precision model, or a name of conf/model",
    )
    parser.add_argument(
        "--calib", default="c4", metavar="NAME", help="a calibration text of conf/calib (c4)"
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="a file of text, for --calib text and others"
    )
    parser.add_argument(
        "--sequences", type=int, metavar="N", help="a number of windows; that of --calib otherwise"
    )
    parser.add_argument(
        "--length", type=int, metavar="N", help="a number of tokens in a window; else of --calib"
    )
    parser.add_argument(
        "--evaluate",
        metavar="PROTOCOL",
        help="a text of suite=perplexity, on which the whole model is compared with the base too, "
        "and with what GPTQ would have made of it",
    )
    parser.add_argument(
        "--evaluate-text", type=Path, metavar="FILE", help="a file of text for --evaluate"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="RESULTS",
        default=RESULTS,
        help="a folder for record and page (results)",
    )
    add_help(parser)


def _add_levels(parser: Parser) -> None:
    parser.add_argument(
        "--levels",
        metavar="MODULE",
        help="an installed module, or a file, with levels that are not built in",
    )


def _complete(action: argparse.Action, completer: Callable[..., Any]) -> None:
    """Set the completer that argcomplete asks for the values of an argument."""
    action.completer = completer  # type: ignore[attr-defined]


def _too_many(parser: Parser, words: Sequence[str]) -> str:
    takes = any(not action.option_strings for action in parser._actions)
    if not takes:
        return f"{parser.prog} takes no arguments, but got {' '.join(words)}."
    return (
        f"{parser.prog} takes no further argument {' '.join(words)}; `{parser.prog} --help` shows "
        "how it is used."
    )


class _Version(argparse.Action):
    """Print the version, looked up only on request."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('bitsweep')}")
        parser.exit()
