"""What the shell offers behind a TAB: experiments, groups, their options, keys.

argcomplete (docs/decisions/0018) asks these functions, each with what was typed of the word
(`prefix`) and the arguments before it (`parsed_args`), and keeps the words that begin alike.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path


def answer(build: Callable[[], ArgumentParser]) -> None:
    """Answer the shell, if it is the shell that asks, and exit; else return at once."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ModuleNotFoundError:  # the shell has it from another environment
        sys.exit(1)
    argcomplete.autocomplete(build())


def group_names(parsed_args: Namespace | None = None, **_: object) -> list[str]:
    """The groups, for `--help GROUP`."""
    from harness.config.help import groups

    return [group.name for group in groups(_folder(parsed_args))]


def formats(**_: object) -> list[str]:
    """The formats that `export` writes."""
    from harness.checkpoint_verbs import format_readers

    return list(format_readers())


def overrides(prefix: str, parsed_args: Namespace | None = None, **_: object) -> list[str]:
    """GROUP=OPTION and KEY=VALUE: groups first, the options of one behind its =, keys behind a dot.

    In a list of values or in brackets, the next one: scheme=w4,w3 and suite=[perplexity,latency].
    """
    return list(_overrides(prefix, _folder(parsed_args)))


def _overrides(prefix: str, extra: Path | None) -> Iterator[str]:
    from harness.config.help import groups, keys, options

    name, equals, typed = prefix.partition("=")
    known = {group.name: group for group in groups(extra)}
    if equals and name in known:
        before = typed[: max(typed.rfind(mark) for mark in ",[") + 1]
        yield from (f"{name}={before}{option}" for option in options(name, extra))
    elif equals:
        group = name.partition(".")[0]
        value = keys(group, known[group].default).get(name) if group in known else None
        if value is not None:
            yield f"{name}={value[0]}"
    elif "." in name:
        group = name.partition(".")[0]
        if group in known:
            yield from (f"{key}=" for key in keys(group, known[group].default))
    else:
        yield from (f"{group}=" for group in known)
        yield from ("seed=", "name=")


def _folder(parsed_args: Namespace | None) -> Path | None:
    """The user's folder, if one was given that is there."""
    folder: Path | None = getattr(parsed_args, "config_dir", None)
    return folder if folder is not None and folder.is_dir() else None
