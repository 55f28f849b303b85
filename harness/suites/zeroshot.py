"""Zero-shot accuracy on lm-eval's tasks, local files and the embedded stories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.data import chat, texts
from harness.data.told import generator_hash
from harness.errors import ConfigError, MissingData
from harness.records.hashes import file_sha256
from harness.records.items import DOCUMENTS
from harness.report.columns import (
    ACCURACY,
    AgainstBits,
    FigureColumn,
    Place,
    Shown,
    SuiteTable,
)
from harness.report.published import beside_published
from harness.report.rows import FigureKey, Row
from harness.report.table import Note
from harness.suites import zeroshot_tasks
from harness.suites.base import (
    Facts,
    Sample,
    Suite,
    SuiteContext,
    SuiteResult,
    at_least_one,
    plain_semantics,
)

if TYPE_CHECKING:
    from harness.config.schema import ModelConfig


NAME = "zeroshot"


@dataclass
class Config:
    """The tasks, and how they are scored."""

    # lm-eval task names, embedded_last_word or embedded_choice. None: the tasks of `files`, or
    # without files those of the model.
    tasks: list[str] | None = None
    files: dict[str, str] = field(default_factory=dict)  # task name -> jsonl file
    limit: int | None = None  # documents per task
    batch_size: int = 16
    num_fewshot: int = 0  # examples in the prompt
    apply_chat_template: bool = False  # the tokenizer's, with the examples as turns


def complete(config: Config, model: ModelConfig, _others: Sequence[Any]) -> Config:
    """Take the tasks of the model if neither tasks nor files are given."""
    if config.tasks is not None:
        return config
    return replace(config, tasks=[] if config.files else list(model.tasks))


def check(config: Config, facts: Facts) -> None:
    """Raise ConfigError for a task that cannot be run, or a number that is too small."""
    key, tasks = facts.key, config.tasks or []
    if not tasks and not config.files:
        raise ConfigError(f"{key}.tasks is empty: name a task, for example {key}.tasks=[piqa].")
    at_least_one(f"{key}.batch_size", config.batch_size)
    at_least_one(f"{key}.limit", config.limit)
    if config.num_fewshot < 0:
        raise ConfigError(f"{key}.num_fewshot={config.num_fewshot} is negative; use 0 or more.")
    if config.apply_chat_template:
        chat.require_template(facts.tokenizer, f"{key}.apply_chat_template=true", facts.model)
    try:
        zeroshot_tasks.check_tasks(tasks, config.files, facts.data_dir)
        _check_examples(config, facts)
    except zeroshot_tasks.AbsentTask as error:
        raise MissingData(f"{key}: {error}.") from error
    except (zeroshot_tasks.TaskError, texts.TextError) as error:
        raise ConfigError(f"{key}: {error}.") from error


def _check_examples(config: Config, facts: Facts) -> None:
    """Raise TaskError for a local task with too few documents for the examples of a prompt."""
    if not config.num_fewshot:
        return
    for name, path in config.files.items():
        file = texts.locate(path, facts.data_dir)
        count = len(zeroshot_tasks.read_local(name, file, config.num_fewshot + 1).documents)
        if count <= config.num_fewshot:
            raise zeroshot_tasks.TaskError(
                f"task {name} has {count} document{'s' * (count != 1)}, too few for "
                f"num_fewshot={config.num_fewshot} examples of others in a prompt; lower it or "
                "name a longer file"
            )


def semantics(config: Config) -> dict[str, Any]:
    """The settings; without the chat template where there is none, as in older records."""
    found = plain_semantics(config)
    if not config.apply_chat_template:
        del found["apply_chat_template"]
    return found


def remarks(config: Config) -> list[str]:
    """Sentences on tasks whose data are not available, while others are."""
    lacking = zeroshot_tasks.lacking(config.tasks or [], config.files)
    return [f"suite.zeroshot without task {name}: {why}." for name, why in lacking.items()]


def inputs(config: Config, facts: Facts) -> dict[str, str]:
    """Hashes of the task files and of the story generator, commits of data that are locked."""
    found = {
        f"task {task}": file_sha256(texts.locate(path, facts.data_dir))
        for task, path in config.files.items()
    }
    if not set(zeroshot_tasks.EMBEDDED_TASKS).isdisjoint(config.tasks or []):
        found["stories"] = generator_hash()
    if config.apply_chat_template and facts.tokenizer is not None:
        found["chat template"] = chat.template_hash(facts.tokenizer)
    return found | zeroshot_tasks.locked_commits(config.tasks or [], config.files)


def samples(config: Config, facts: Facts) -> list[Sample]:
    """The documents of each task; those of lm-eval's tasks are at most the limit."""
    counts: dict[str, int | None] = {}
    prompts = zeroshot_tasks.prompt_id(config)
    for name in zeroshot_tasks.wanted(config.tasks or [], config.files):
        if name in config.files:
            file = texts.locate(config.files[name], facts.data_dir)
            counts[name] = len(zeroshot_tasks.read_local(name, file, config.limit).documents)
        elif name in zeroshot_tasks.EMBEDDED_TASKS:
            counts[name] = config.limit or zeroshot_tasks.EMBEDDED_DOCUMENTS
        else:
            counts[name] = config.limit
    return [
        Sample(f"{name}{prompts}", "accuracy", DOCUMENTS, count, share=True)
        for name, count in counts.items()
    ]


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """Measure the scores of each task, with standard errors, and of every document."""
    from harness.suites import zeroshot_scoring

    return zeroshot_scoring.run(context, config)


def _ties(row: Row, key: FigureKey, _rows: Sequence[Row]) -> list[str]:
    figure = row.figures[key]
    ties = figure.note(zeroshot_tasks.TIES)
    if ties in ("", "0"):
        return []
    return [f"{ties} of {figure.n} documents have two best choices within 0.0001 nat"]


def _notes(rows: Sequence[Row], shown: Sequence[Shown]) -> list[Note]:
    """What prompts have besides the document, where they have anything."""
    said: dict[str, list[str]] = {}
    for each in shown:
        figure = next(row.figures[each.key] for row in rows if each.key in row.figures)
        shots, template = figure.note("num_fewshot"), figure.note(zeroshot_tasks.CHAT_TEMPLATE)
        parts = [f"{shots} examples before the document"] * (shots not in ("", "0"))
        parts += [f"in the chat template {template[:8]}, examples as turns"] * bool(template)
        if parts:
            said.setdefault(", ".join(parts), []).append(each.key[1])
    return [
        Note(f"Prompts of {', '.join(dict.fromkeys(tasks))}: {text}.")
        for text, tasks in said.items()
    ]


PUBLISHED = Place("published_accuracy", "Zero-shot accuracy of {model} beside published", 12)
PLOT = AgainstBits("accuracy", "Accuracy against bits per weight")
TARGETS = AgainstBits(
    "target_perplexity", "Perplexity of the last word against bits per weight", True, 12.0
)

_column = partial(FigureColumn, plot=PLOT, optional=True)  # tasks differ in what they score

TABLE = SuiteTable(
    columns=(
        _column("accuracy", detail="acc.", footnotes=_ties),
        _column(
            "acc_norm",
            detail="norm. acc.",
            quantity="length-normalized accuracy",
            footnotes=_ties,
        ),
        # LAMBADA's, of the last word given its passage. Papers print the accuracy on these words.
        _column(
            "target_perplexity",
            detail="target ppl",
            quantity="perplexity of the last word",
            on_screen=False,
            plot=TARGETS,
        ),
    ),
    others=_column(""),  # exact_match, f1, ...
    joins=ACCURACY,
    rank=20,
    compared=True,
    notes=_notes,
    tables=(beside_published(PUBLISHED, NAME, ("accuracy", "acc_norm")),),
)

SUITE = Suite(
    name=NAME,
    version=2,
    config=Config,
    run=run,
    complete=complete,
    check=check,
    remarks=remarks,
    inputs=inputs,
    semantics=semantics,
    samples=samples,
    # Most of lm-eval is imported where it is first used.
    preload=(
        "harness.suites.zeroshot_scoring",
        "harness.suites.zeroshot_model",
        "lm_eval.api.task",
        "lm_eval.evaluator",
    ),
    table=TABLE,
)
