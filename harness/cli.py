"""The command line: `bitsweep VERB`, as VERBS lists them.

harness.arguments has its grammar and help. Heavy libraries are imported only by verbs that need
them. Exit status: 0 success, 1 something failed (see the summary), 2 the request is impossible, 130
interrupted by the user, 143 terminated (SIGTERM); of audit 3: layers contradict the claim.
"""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from harness import arguments, completion, streams
from harness.errors import BitsweepError
from harness.extras import require
from harness.run.signals import INTERRUPTED, as_interrupts, exit_status
from quant.errors import QuantizationError

if TYPE_CHECKING:
    from harness.config.schema import Cell

T = TypeVar("T", bound=Any)

__all__ = ["FAILED", "IMPOSSIBLE", "INTERRUPTED", "OK", "main"]

OK, FAILED, IMPOSSIBLE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status; the user's errors are one sentence on stderr.

    argv  None: the arguments of this process, whose output streams are then made safe to write to.
    """
    if argv is None:
        completion.answer(lambda: arguments.build()[0])
        streams.prepare()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with as_interrupts():
            status = _main(words)
            sys.stdout.flush()
            return status
    except streams.OutputError as error:
        if not error.closed:  # a reader such as head that closed the pipe needs no message
            _say(error)
        return FAILED
    except (BitsweepError, QuantizationError) as error:
        _say(error)
        return IMPOSSIBLE
    except KeyboardInterrupt as error:
        kept = ": finished stages are kept; run the same command again to continue"
        print(f"bitsweep: interrupted{kept * (words[:1] == ['run'])}.", file=sys.stderr)
        return exit_status(error)


def _main(words: list[str]) -> int:
    try:
        options = arguments.parse(words)
    except SystemExit:  # help or the version was printed
        return OK
    if options.verb is None:
        print(arguments.build()[0].format_help(), end="")
        return IMPOSSIBLE
    return VERBS[options.verb](options)


def _run(options: Namespace) -> int:
    cells = _cells(options)
    if cells is None:
        return OK
    from harness.run import launch

    return launch.run(cells, options.config_dir)


def _plan(options: Namespace) -> int:
    cells = _cells(options)
    if cells is None:
        return OK
    from harness.launchers.choosing import chosen, runs_elsewhere
    from harness.run.launch import resolve_all
    from harness.run.planned import show_plan

    launcher = chosen(cells, options.config_dir)
    elsewhere = runs_elsewhere(launcher)
    workers = 1 if launcher is None else min(launcher.options.workers, len(cells))
    show_plan(resolve_all(cells, elsewhere), elsewhere, workers)
    return OK


def _fetch(options: Namespace) -> int:
    cells = _cells(options)
    if cells is None:
        return OK
    from harness.fetching.verb import fetch

    return fetch(cells, options.update)


def _cells(options: Namespace) -> list[Cell] | None:
    """The composed cells; None if help or the configuration was printed."""
    if options.help is not None:
        _print_help(options)
        return None
    require("harness", f"bitsweep {options.verb}")
    from harness.config.kept import cells_of
    from harness.config.schema import as_yaml

    cells = cells_of(options.overrides, options.multirun, options.config_dir)
    if options.cfg:
        from harness.run.launch import resolve_all

        resolve_all(cells)  # show only a configuration that could run
        print("---\n".join(as_yaml(cell) for cell in cells), end="")
        return None
    return cells


def _print_help(options: Namespace) -> None:
    """Print the help of run, plan or fetch, or of the group after --help."""
    from harness.config.help import group_help, run_help

    if options.help.isidentifier():
        print(group_help(options.help, options.config_dir), end="")
        return
    options.parser.description = run_help(options.config_dir, options.verb)
    print(options.parser.format_help(), end="")


def _report(options: Namespace) -> int:
    require("harness", "bitsweep report")
    from harness.report.verb import Request, report

    options.results = options.results or [arguments.RESULTS]
    return report(_request(Request, options))


def _sync(options: Namespace) -> int:
    require("harness", "bitsweep sync")
    require("wandb", "bitsweep sync")
    from harness.syncing import Request, sync

    return sync(_request(Request, options))


def _status(options: Namespace) -> int:
    require("harness", "bitsweep status")
    from harness.run.status import status

    status(options.results, options.all)
    return OK


def _export(options: Namespace) -> int:
    from harness.checkpoint_verbs import export_to

    export_to(
        options.artifact,
        options.out,
        options.format,
        options.overwrite,
        options.levels,
        options.trust_remote_code,
    )
    return OK


def _push(options: Namespace) -> int:
    require("harness", "bitsweep push")
    from harness.pushing import Request, push

    return push(_request(Request, options))


def _inspect(options: Namespace) -> int:
    from harness.checkpoint_verbs import inspect

    inspect(options.folder, options.levels)
    return OK


def _audit(options: Namespace) -> int:
    require("harness", "bitsweep audit")
    from harness.auditing.verb import Request, audit

    return audit(_request(Request, options))


def _compare(options: Namespace) -> int:
    require("harness", "bitsweep compare")
    from harness.paired.verb import compare

    form = "json" if options.json else "csv" if options.csv else "table"
    return compare(options.first, options.second, options.results, form)


def _recommend(options: Namespace) -> int:
    require("harness", "bitsweep recommend")
    from harness.recommend.limits import Limits
    from harness.recommend.verb import Asked, recommend

    asked = Asked(options.results, _request(Limits, options), options.model, options.prefer)
    return recommend(asked, "json" if options.json else "table")


def _paper(options: Namespace) -> int:
    require("harness", "bitsweep paper")
    from harness.records.asked import require_folder, say
    from harness.records.store import scan_records
    from harness.report.progress import commands, progress, progress_table
    from harness.report.render import to_rich
    from harness.run.screen import open_console

    place = options.results
    if place.exists() or place != arguments.RESULTS:
        require_folder(place)
    records, notes = scan_records(place)
    say(notes)
    found = progress(records)
    screen = open_console()
    screen.print(to_rich(progress_table(found, str(place)), screen.width))
    for line in commands(found):
        screen.print(line, highlight=False, markup=False, soft_wrap=True)
    return OK


def _doctor(_: Namespace) -> int:
    from harness.doctor import examine

    return OK if examine() else FAILED


VERBS: dict[str, Callable[[Namespace], int]] = {
    "run": _run,
    "plan": _plan,
    "fetch": _fetch,
    "status": _status,
    "report": _report,
    "compare": _compare,
    "sync": _sync,
    "recommend": _recommend,
    "paper": _paper,
    "export": _export,
    "push": _push,
    "inspect": _inspect,
    "audit": _audit,
    "doctor": _doctor,
}


def _request(kind: type[T], options: Namespace) -> T:
    """The dataclass of a verb's request, each field from the option of its name."""
    made: T = kind(**{name: getattr(options, name) for name in kind.__dataclass_fields__})
    return made


def _say(error: BaseException) -> None:
    """Print an error as one sentence, or with its traceback if that is requested."""
    if os.environ.get("BITSWEEP_DEBUG") or os.environ.get("HYDRA_FULL_ERROR"):
        traceback.print_exception(error)
    print(f"bitsweep: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
