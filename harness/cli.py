"""The command line: `bitsweep run|plan|report|export|inspect|doctor`.

Nothing heavy is imported before a verb needs it, so that help is instant. Exit status: 0 all went
well, 1 something failed (and the summary says what), 2 the request itself is impossible, 130 the
user interrupted, 143 the process was told to end (SIGTERM).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness import streams
from harness.errors import BitsweepError, ConfigError
from harness.run.signals import INTERRUPTED, as_interrupts, exit_status
from quant.errors import QuantizationError

if TYPE_CHECKING:
    from harness.config.schema import Cell

__all__ = ["FAILED", "IMPOSSIBLE", "INTERRUPTED", "OK", "main"]

OK, FAILED, IMPOSSIBLE = 0, 1, 2

HELP = """\
usage: bitsweep VERB [arguments]

What does it cost, in accuracy, time and memory, to run a language model at a given bit width?

  run     quantize, measure and print the table; finished work is never repeated
  plan    say what run would do with the same arguments, and what is done already
  report  make tables and plots again from the records in a results folder
  export  write a quantized model again in a format that other tools load
  inspect show what a quantized checkpoint holds, whoever made it
  doctor  show what this machine has: versions, threads, devices, kernels

  bitsweep run experiment=quickstart     the first sweep, under three minutes on two cores
  bitsweep run --help                    every choice a run has

  -h, --help     this text
  --version      the version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status; errors of the user are one sentence on stderr.

    argv  None: those of this process, whose output streams are made safe to write to.
    """
    if argv is None:
        streams.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with as_interrupts():
            status = _main(arguments)
            sys.stdout.flush()
            return status
    except streams.OutputError as error:
        if not error.closed:  # a reader that has seen enough, such as head, needs no word
            _say(error)
        return FAILED
    except (BitsweepError, QuantizationError) as error:
        _say(error)
        return IMPOSSIBLE
    except KeyboardInterrupt as error:
        kept = ": finished stages are kept; run the same command again to go on from here"
        print(f"bitsweep: interrupted{kept * (arguments[:1] == ['run'])}.", file=sys.stderr)
        return exit_status(error)


def _main(arguments: list[str]) -> int:
    verbs = {
        "run": _run,
        "plan": _plan,
        "report": _report,
        "export": _export,
        "inspect": _inspect,
        "doctor": _doctor,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return OK if arguments else IMPOSSIBLE
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"bitsweep {version('bitsweep')}")
        return OK
    verb, rest = arguments[0], arguments[1:]
    if verb not in verbs:
        raise ConfigError(f"{verb} is not a verb: use one of {', '.join(verbs)}.")
    return verbs[verb](rest)


@dataclass
class Request:
    """The arguments of run and plan."""

    overrides: list[str] = field(default_factory=list)
    multirun: bool = False
    show_config: bool = False
    config_dir: Path | None = None
    help: str | None = None  # "" for all of it, or the name of a group

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Request:
        """Split flags from overrides. ConfigError for a flag that does not exist."""
        request, rest = cls(), list(arguments)
        while rest:
            word = rest.pop(0)
            if word in ("-h", "--help"):
                request.help = rest.pop(0) if rest and rest[0].isidentifier() else ""
            elif word in ("-m", "--multirun"):
                request.multirun = True
            elif word == "--cfg":
                request.show_config = True
            elif word == "--config-dir":
                if not rest:
                    raise ConfigError("--config-dir needs a folder laid out like conf/.")
                request.config_dir = Path(rest.pop(0))
            elif word.startswith("--config-dir="):
                request.config_dir = Path(word.partition("=")[2])
            elif word.startswith("-"):
                raise ConfigError(
                    f"{word} is not an option of this verb: `bitsweep run --help` lists them; "
                    "values are set with KEY=VALUE, without dashes."
                )
            else:
                request.overrides.append(word)
        return request

    def compose(self) -> list[Cell]:
        """The cells that the arguments stand for, by Hydra."""
        from harness.config.compose import compose_cells

        return compose_cells(self.overrides, self.multirun, self.config_dir)


def _run(arguments: Sequence[str]) -> int:
    request = Request.parse(arguments)
    cells = _cells(request)
    if cells is None:
        return OK
    from harness.run import launch

    return launch.run(cells, request.config_dir)


def _plan(arguments: Sequence[str]) -> int:
    cells = _cells(Request.parse(arguments))
    if cells is None:
        return OK
    from harness.run import launch

    launch.show_plan(launch.resolve_all(cells))
    return OK


def _cells(request: Request) -> list[Cell] | None:
    """The composed cells; None when help or the configuration was printed."""
    if request.help is not None:
        from harness.config.help import group_help, run_help

        extra = request.config_dir
        print(group_help(request.help, extra) if request.help else run_help(extra), end="")
        return None
    from harness.config.kept import kept_cells
    from harness.config.schema import as_yaml

    cells = kept_cells(request.overrides, request.multirun, request.config_dir, request.compose)
    if request.show_config:
        from harness.run.launch import resolve_all

        resolve_all(cells)  # a configuration that is shown is one that could run
        print("---\n".join(as_yaml(cell) for cell in cells), end="")
        return None
    return cells


def _report(arguments: Sequence[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="bitsweep report", description="Tables and plots from the records of earlier runs."
    )
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, help="folder of the report (RESULTS/reports/all)")
    parser.add_argument("--title", default="Bitsweep report", help="its heading")
    parser.add_argument("--config-dir", type=Path, help="a folder of yours whose suites were run")
    options = parser.parse_args(arguments)
    from harness.cell.parts import suites_in
    from harness.records.store import require_place, scan_records
    from harness.run.launch import report

    records, notes = scan_records(options.results)
    for note in notes:
        print(f"bitsweep: {note}", file=sys.stderr)
    if not records:
        raise ConfigError(
            f"{options.results} holds no records: make some with `bitsweep run`, or name the "
            "results folder of a run, as in `bitsweep report my/results`."
        )
    folder = options.out or options.results / "reports" / "all"
    try:
        require_place(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: name another folder for the report with --out FOLDER."
        ) from error
    report(
        records,
        folder,
        options.title,
        suites_in(options.config_dir),
        own_folder=options.out is None,
    )
    return OK


def _export(arguments: Sequence[str]) -> int:
    from harness.checkpoint_verbs import export_parser, export_to

    options = export_parser().parse_args(arguments)
    export_to(
        options.artifact,
        options.out,
        options.format,
        options.overwrite,
        options.levels,
        options.trust_remote_code,
    )
    return OK


def _inspect(arguments: Sequence[str]) -> int:
    from harness.checkpoint_verbs import inspect, inspect_parser

    options = inspect_parser().parse_args(arguments)
    inspect(options.folder, options.levels)
    return OK


def _doctor(arguments: Sequence[str]) -> int:
    if arguments:
        raise ConfigError(f"bitsweep doctor takes no arguments, but got {' '.join(arguments)}.")
    from harness.doctor import examine

    return OK if examine() else FAILED


def _say(error: BaseException) -> None:
    """One sentence; the traceback only for those who ask."""
    if os.environ.get("BITSWEEP_DEBUG") or os.environ.get("HYDRA_FULL_ERROR"):
        traceback.print_exception(error)
    print(f"bitsweep: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
