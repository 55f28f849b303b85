"""Zero-shot accuracy on lm-eval's tasks, on local files and on our stories."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from omegaconf import MISSING

from harness.data import texts
from harness.data.sources import generator_hash
from harness.errors import ConfigError
from harness.records.hashes import file_sha256
from harness.report.columns import ACCURACY, AgainstBits, FigureColumn, SuiteTable
from harness.suites import zeroshot_tasks
from harness.suites.base import Facts, Suite, SuiteContext, SuiteResult, at_least_one


@dataclass
class Config:
    """The tasks and how they are asked."""

    tasks: list[str] = MISSING  # lm-eval task names, or embedded_last_word, embedded_choice
    files: dict[str, str] = field(default_factory=dict)  # task name -> jsonl file
    limit: int | None = None  # documents a task
    batch_size: int = 16
    num_fewshot: int = 0


def check(config: Config, facts: Facts) -> None:
    """ConfigError for a task that cannot be run, or a number that is too small."""
    key = facts.key
    if not config.tasks and not config.files:
        raise ConfigError(f"{key}.tasks is empty: name a task, for example {key}.tasks=[piqa].")
    at_least_one(f"{key}.batch_size", config.batch_size)
    at_least_one(f"{key}.limit", config.limit)
    try:
        zeroshot_tasks.check_tasks(config.tasks, config.files, facts.data_dir)
    except (zeroshot_tasks.TaskError, texts.TextError) as error:
        raise ConfigError(f"{key}: {error}.") from error


def inputs(config: Config, facts: Facts) -> dict[str, str]:
    """Hashes of the task files, and of our generator when its stories are asked for."""
    found = {
        f"task {task}": file_sha256(texts.locate(path, facts.data_dir))
        for task, path in config.files.items()
    }
    if not set(zeroshot_tasks.EMBEDDED_TASKS).isdisjoint(config.tasks):
        found["stories"] = generator_hash()
    return found


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """The scores of each task with standard errors, and those of every document."""
    from harness.suites import zeroshot_scoring

    return zeroshot_scoring.run(context, config)


PLOT = AgainstBits("accuracy", "Accuracy against bits per weight")

_column = partial(FigureColumn, plot=PLOT, optional=True)  # tasks differ in what they score

TABLE = SuiteTable(
    columns=(
        _column("accuracy", detail="acc."),
        _column("acc_norm", detail="norm. acc."),
        # LAMBADA's, of the last word given its passage. Papers print the accuracy on these words.
        _column("target_perplexity", detail="target ppl", on_screen=False),
    ),
    others=_column(""),  # exact_match, f1, ...
    joins=ACCURACY,
    rank=20,
    compared=True,
)

SUITE = Suite(
    name="zeroshot",
    version=1,
    config=Config,
    run=run,
    check=check,
    inputs=inputs,
    preload=("harness.suites.zeroshot_scoring", "harness.suites.zeroshot_model"),
    table=TABLE,
)
