"""Find zero-shot tasks: those of lm-eval, without its index, and local files.

lm-eval parses some 14,000 YAML files for its index, which takes many seconds. Here a task is found
by the name of its file, or else by a search for the lines that name tasks; lm-eval then gets only
the folders of the requested tasks. This module does not import lm-eval.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from harness.data import lock, texts
from harness.errors import BitsweepError
from harness.suites import zeroshot_data

EMBEDDED_TASKS = ("embedded_last_word", "embedded_choice")
EMBEDDED_DOCUMENTS = 500
"""Documents of an embedded task when no limit is set."""
TIES = "ties"  # note with the number of documents whose two best choices are too close

CHAT_TEMPLATE = "chat_template"  # note with the hash of the template that prompts were put into

_NAMING = re.compile(
    rb"^[\"']?(task|group|tag)[\"']?[ \t]*:[ \t]*(.*?)[ \t]*(?:#.*)?\r?$", re.MULTILINE
)
_ITEM = re.compile(rb"\s*\n[ \t]*-[ \t]+([^\n:{]+?)[ \t]*\r?(?=\n|$)")


class TaskError(BitsweepError):
    """A task is unknown, its file is invalid, or its data are not available."""


class AbsentTask(TaskError):
    """The data of a task are not on this machine and cannot be downloaded."""


@dataclass(frozen=True)
class LocalTask:
    """The documents of a task outside lm-eval.

    kind       continuation: documents {context, continuation}; choice: {query, choices, gold};
               contexts: {context_options, continuation, gold}, one context for each option;
               answer: {query, answer}, generated.
    documents  normalised: see `normalise`.
    """

    name: str
    kind: str
    documents: list[dict[str, Any]]
    source: str


def wanted(names: Sequence[str], files: Mapping[str, str]) -> list[str]:
    """Return the tasks of a run: the named ones, then those that only have a file."""
    return list(dict.fromkeys([*names, *files]))


class Prompts(Protocol):
    """The settings of prompts beside the document."""

    num_fewshot: int
    apply_chat_template: bool


def prompt_id(config: Prompts) -> str:
    """What follows the name of a task in records: "", "-5shot", "-chat", "-5shot-chat".

    Figures of other prompts are others: tables give them columns of their own.
    """
    shots = f"-{config.num_fewshot}shot" * bool(config.num_fewshot)
    return shots + "-chat" * config.apply_chat_template


def check_tasks(
    names: Sequence[str], files: Mapping[str, str], data_dir: str | Path | None = None
) -> None:
    """Raise TaskError or TextError for tasks that cannot be run. Loads neither model nor lm-eval.

    Missing data of an lm-eval task are not an error if another task is available: then that task
    fails alone (`lacking`).

    names  tasks, groups and tags of lm-eval, tasks of `files`, or of `EMBEDDED_TASKS`.
    files  task name -> jsonl file, which replaces a task of lm-eval of that name.
    """
    for name in wanted(names, files):
        if name in files:
            read_local(name, texts.locate(files[name], data_dir), limit=1)
        elif name not in EMBEDDED_TASKS:
            find_tasks([name])
    missing = lacking(names, files)
    if missing and len(missing) == len(wanted(names, files)):
        raise AbsentTask(next(iter(missing.values())))


def lacking(names: Sequence[str], files: Mapping[str, str]) -> dict[str, str]:
    """Return the causes of tasks whose data are known to be unavailable, by task."""
    found = {}
    for name in wanted(names, files):
        if name in files or name in EMBEDDED_TASKS:
            continue
        try:
            _check_data(name, find_tasks([name]))
        except AbsentTask as error:
            found[name] = str(error)
    return found


def read_local(name: str, file: Path, limit: int | None = None) -> LocalTask:
    """Return the first `limit` items of a jsonl task file, normalised.

    All items must have the form of the first. Raises TaskError, with the line, for a wrong item.
    """
    documents: list[dict[str, Any]] = []
    kind = ""
    if not file.is_file():
        raise TaskError(f"task {name}: {file} is a folder; name its jsonl file")
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line.decode("utf-8"))
                kind = kind or _kind(item)
                documents.append(normalise(kind, item))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = _reason(error)
                raise TaskError(
                    f"task {name}: line {number} of {file} is wrong: {reason}"
                ) from error
            if len(documents) == limit:
                break
    if not documents:
        raise TaskError(f"task {name}: {file} has no items; name a jsonl file with some")
    return LocalTask(name, kind, documents, file.name)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply for JSON"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start + 1} is 0x{error.object[error.start]:02x})"
    return str(error)


def embedded(name: str, limit: int | None) -> LocalTask:
    """Return `limit` items (500 by default) of one of `EMBEDDED_TASKS`."""
    from harness.data import told
    from harness.embedded import stories

    count = limit or EMBEDDED_DOCUMENTS
    items: Sequence[Mapping[str, Any]]
    if name == "embedded_last_word":
        kind, items = "continuation", told.last_word_items(count)
    else:
        kind, items = "choice", told.choice_items(count)
    documents = [normalise(kind, item) for item in items]
    return LocalTask(name, kind, documents, f"embedded stories {stories.GENERATOR_VERSION}")


def _kind(item: Any) -> str:
    for kind, keys in (
        ("continuation", {"context", "continuation"}),
        ("choice", {"query", "choices", "gold"}),
        ("contexts", {"context_options", "continuation", "gold"}),
        ("answer", {"query", "answer"}),
    ):
        if isinstance(item, dict) and keys <= item.keys():
            return kind
    raise ValueError(
        "an item needs {context, continuation}, {query, choices, gold}, {query, answer} or "
        "{context_options, continuation, gold}"
    )


def normalise(kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item in the form of lm-eval's tasks.

    A continuation gets a leading space unless it or its context has white space there. A query
    loses trailing white space, and choices one leading space, because lm-eval puts one space
    between them. A query "Question: ..." gets the line "Answer:", as PIQA and ARC have in the paper
    and in lm-eval. Raises ValueError, KeyError or TypeError for a wrong item.
    """
    if kind == "continuation":
        context, continuation = _text(item, "context"), _text(item, "continuation")
        if not continuation.strip():
            raise ValueError("the continuation is empty")
        spaced = continuation[0].isspace() or not context or context[-1].isspace()
        return {"context": context, "continuation": continuation if spaced else " " + continuation}
    if kind == "answer":
        query, answer = _text(item, "query").rstrip(), _text(item, "answer").strip()
        if not query or not answer or "\n" in answer:
            raise ValueError("query and answer must be texts, and the answer a single line")
        return {"query": query, "answer": answer}
    options = item["choices" if kind == "choice" else "context_options"]
    if not isinstance(options, list) or len(options) < 2:
        raise ValueError("there must be a list of two or more options")
    if not all(isinstance(option, str) and option.strip() for option in options):
        raise ValueError("every option must be a text that is not empty")
    gold = item["gold"]
    if type(gold) is not int or not 0 <= gold < len(options):
        raise ValueError(f"gold is {gold!r}, not the number of one of {len(options)} options")
    if kind == "contexts":
        continuation = _text(item, "continuation").strip()
        return {
            "options": [option.rstrip() for option in options],
            "continuation": continuation,
            "gold": gold,
        }
    query = _text(item, "query").rstrip()
    if query.startswith("Question:") and not query.endswith("Answer:"):
        query += "\nAnswer:"
    choices = [option.removeprefix(" ") for option in options]
    return {"query": query, "choices": choices, "gold": gold}


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, not a text")
    return value


def find_tasks(names: Iterable[str]) -> list[Path]:
    """Return the YAML files of lm-eval that define these tasks, groups or tags and their members.

    Raises TaskError, with the closest names, for a name that lm-eval does not have.
    """
    found: dict[Path, None] = {}
    seen: set[str] = set()
    stack = [(name, True) for name in names]
    while stack:
        name, required = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        files = _by_file_name(name) or _all_names().get(name, ())
        if not files and required:
            raise TaskError(_unknown(name))
        for file in files:
            if file not in found:
                found[file] = None
                stack += [(member, False) for member in _members(file, name)]
    return list(found)


def tasks_folder() -> Path:
    """Return the folder of lm-eval's task files, without importing lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError("lm-eval is not installed; install it with: pip install 'lm-eval[hf]'")
    return Path(spec.submodule_search_locations[0]) / "tasks"


@cache
def _yaml_files() -> tuple[Path, ...]:
    files: list[Path] = []
    for folder, folders, names in os.walk(tasks_folder()):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints")]
        files += [Path(folder, name) for name in names if name.endswith(".yaml")]
    return tuple(sorted(files, key=Path.as_posix))  # of duplicates, the first counts


@cache
def _files_named() -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for file in _yaml_files():
        named.setdefault(file.stem, []).append(file)
    return named


def _by_file_name(name: str) -> tuple[Path, ...]:
    for file in _files_named().get(name, ()):
        if name in _names(file.read_bytes(), ("task", "group")):
            return (file,)
    return ()


def _names(content: bytes, keys: Sequence[str]) -> list[str]:
    """Return the values of the top-level keys `keys` in a YAML text, lists included."""
    found = []
    for match in _NAMING.finditer(content):
        if match[1].decode() not in keys:
            continue
        if match[2]:
            found += [part.strip(" \t'\"") for part in match[2].decode().strip("[]").split(",")]
        elif match[1] == b"tag":
            place = match.end()
            while item := _ITEM.match(content, place):
                found.append(item[1].decode().strip("'\""))
                place = item.end()
    return found


@cache
def _all_names() -> dict[str, tuple[Path, ...]]:
    """Return the defining files by task, group or tag (for a tag: all files with it)."""
    defined: dict[str, tuple[Path, ...]] = {}
    tagged: dict[str, list[Path]] = {}
    for file in _yaml_files():
        content = file.read_bytes()
        for name in _names(content, ("task", "group")):
            defined.setdefault(name, (file,))
        if _names(content, ("group",)):
            continue  # the tags of groups have no meaning in lm-eval
        for tag in _names(content, ("tag",)) or _included_tags(file, content):
            tagged.setdefault(tag, []).append(file)
    return {tag: tuple(files) for tag, files in tagged.items()} | defined


def _included_tags(file: Path, content: bytes) -> list[str]:
    match = re.search(rb"^[\"']?include[\"']?:[ \t]*(\S+)", content, re.MULTILINE)
    included = match and file.parent / match[1].decode().strip("'\"")
    if not included or not included.is_file():
        return []
    inner = included.read_bytes()
    return _names(inner, ("tag",)) or _included_tags(included, inner)


def _unknown(name: str) -> str:
    known = [*EMBEDDED_TASKS, *_all_names()]
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    return (
        f"there is no zero-shot task {name!r} in lm-eval; "
        + (f"did you mean {' or '.join(close)}? " if close else "")
        + f"To run a file of your own, set suite.zeroshot.files.{name}=<jsonl>"
    )


def _config(file: Path) -> dict[str, Any]:
    """Return a task's YAML with its includes, without Python functions."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        pass

    Loader.add_multi_constructor("!", lambda *_: None)
    config: dict[str, Any] = yaml.load(file.read_bytes(), Loader=Loader)
    includes = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [includes] if isinstance(includes, str) else includes:
        merged |= _config(file.parent / name)
    return merged | config


def _members(file: Path, name: str) -> list[str]:
    """Return the members of group `name`; empty for a task."""
    if b"group" not in file.read_bytes():
        return []
    config = _config(file)
    if config.get("group") != name:
        return []
    return list(_listed(config.get("task")))


def _listed(tasks: Any) -> Iterable[str]:
    for item in tasks if isinstance(tasks, list) else [tasks]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            if "group" in item:
                yield item["group"]
            yield from _listed(item.get("task"))


def _check_data(name: str, files: Sequence[Path]) -> None:
    """Raise AbsentTask if a task's data set is not cached and cannot be downloaded."""
    said = zeroshot_data.unavailable(name, [_config(file) for file in files])
    if said is not None:
        raise AbsentTask(said)


def locked_commits(names: Sequence[str], files: Mapping[str, str]) -> dict[str, str]:
    """The commits of tasks' data in the lock, by "data TASK"; without a lock they are unknown."""
    if lock.current() is None:
        return {}
    ours = {*files, *EMBEDDED_TASKS}
    theirs = (name for name in wanted(names, files) if name not in ours)
    commits = {name: zeroshot_data.commits(_configs(name)) for name in theirs}
    return {f"data {name}": commit for name, commit in commits.items() if commit}


def as_locked(name: str) -> AbstractContextManager[None]:
    """Context: the package `datasets` asks nobody for the data of a task, if they are locked."""
    return zeroshot_data.as_locked(_configs(name))


def _configs(name: str) -> list[dict[str, Any]]:
    return [_config(file) for file in find_tasks([name])]
