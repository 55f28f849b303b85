"""What a suite is: a spec that says what it reads, measures and adds to tables.

A suite is one module that ends in `SUITE = Suite(...)`. Reading the module loads no library that
takes long: torch and its like are imported by what `run` calls.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.inputs import without_folders
from harness.errors import ConfigError
from harness.records.environment import gpu, machine
from harness.records.hashes import digest
from harness.report.columns import SuiteTable

if TYPE_CHECKING:
    from torch import Tensor

    from harness.config.schema import ModelConfig
    from harness.records.record import Metric

    Streamed = Callable[[Sequence[Tensor], Callable[[int, int], None]], Iterator[Tensor]]


def _no_reference() -> Any:
    raise ValueError("this model was not quantized, so there are no packed weights to load again.")


# Inputs of a stage that are not the suite's to name: its own would overwrite them in the record.
OWN_INPUTS = frozenset({"model", "calibration", "code", "artifact"})


@dataclass(frozen=True)
class SuiteContext:
    """The packed model under test and what is needed to compare it with full precision.

    model       the loaded Hugging Face causal LM, in eval mode, on `device`.
    tokenizer   its tokenizer.
    load_baseline   loads the full-precision model the cell started from (same dtype and device);
                returns `model` itself when the cell is not quantized.
    data_dir    folder in which relative paths of texts and task files are looked for first.
    context_length  tokens of a window; None: the model's own maximum.
    streamed    set when the model is not whole in memory: streamed(batches, done) yields the logits
                of batches of ids in their order; `model` is then without weights in its blocks.
    progress    called as progress(done, total, what) from time to time; never None.
    has_original  load_baseline gives the model from before quantization; False for a checkpoint
                that was quantized elsewhere, whose baseline is its own weights, dequantized.
    load_reference  loads the quantized model again with the reference kernel; ValueError without
                an artifact to load.
    """

    model: Any
    tokenizer: Any
    load_baseline: Callable[[], Any]
    quantized: bool
    kernel: str
    device: str
    dtype: str
    seed: int
    data_dir: Path | None
    progress: Callable[[int, int, str], None]
    context_length: int | None = None
    has_original: bool = True
    load_reference: Callable[[], Any] = _no_reference
    streamed: Streamed | None = None


@dataclass(frozen=True)
class SuiteResult:
    """Figures, the hashes of what they were measured on, and the score of every document.

    failures  why there are no figures of a task, by its name: the others have theirs, and the suite
              counts as failed, so that it is tried again.
    """

    metrics: list[Metric]
    inputs: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What is known of a cell before anything is loaded.

    key       the key of the suite's configuration, as messages name it: "suite.perplexity".
    model     the model's name.
    shape     its config.json (the text part of a multimodal one); None while it is not here.
    data_dir  folder of relative paths (paths.data).
    device    cpu, cuda or cuda:N; threads: runtime.threads.
    """

    key: str
    model: str
    shape: Mapping[str, Any] | None = None
    data_dir: str | None = None
    device: str = "cpu"
    threads: int | None = None


def accept_all(_config: Any, _facts: Facts) -> None:
    """The check of a suite whose configuration can hold nothing impossible."""


def no_inputs(_config: Any, _facts: Facts) -> dict[str, str]:
    """The inputs of a suite that reads nothing but the model."""
    return {}


def machine_inputs(_config: Any, facts: Facts) -> dict[str, str]:
    """The inputs of a suite that measures time, which belongs to the machine it was taken on."""
    threads = facts.threads if facts.device == "cpu" else None
    return {"machine": digest([machine(), gpu(facts.device), threads])}


def as_given(config: Any, _model: ModelConfig, _others: Sequence[Any]) -> Any:
    """Of a suite that takes nothing from its model's configuration or from other suites."""
    return config


def nothing_to_remark(_config: Any) -> list[str]:
    """Of a suite that either can measure all it was asked or nothing."""
    return []


def no_positions(_config: Any) -> int:
    """Of a suite that uses no KV cache."""
    return 0


def plain_semantics(config: Any) -> dict[str, Any]:
    """Every setting, with paths (of the keys path, paths and files) as file names."""
    return without_folders(dataclasses.asdict(config))


def at_least_one(key: str, value: int | None) -> None:
    """ConfigError for a number below 1; None is no number."""
    if value is not None and value < 1:
        raise ConfigError(f"{key}={value} is too small; use 1 or more.")


@dataclass(frozen=True)
class Suite:
    """A suite: what it may be asked, what it measures, and how reports show it.

    name       of its records and of its key below `suite`; a Python identifier.
    version    raised when it computes something else from the same input; in the key.
    config     its settings: a plain dataclass whose types OmegaConf knows.
    run        measures one model.
    table      what it adds to reports (harness.report.columns).
    complete   complete(config, the model's configuration, the configurations of the other suites):
               the settings with what was left open filled in; before anything else sees them.
    check      raises ConfigError, in one sentence, for what cannot work.
    remarks    sentences for the plan: what of it cannot be measured, though the rest can.
    inputs     hashes of what it reads besides the model; in the key.
    semantics  the settings that go into key and record.
    streams    can measure a model that is never whole in memory (SuiteContext.streamed).
    timing     its figures belong to the machine, and random weights will do.
    preload    modules that are imported once for all cells.
    positions  tokens that stand in the KV cache at most; random weights leave room for them.

    ValueError when a part of it is missing.
    """

    name: str
    version: int
    config: type
    run: Callable[[SuiteContext, Any], SuiteResult]
    table: SuiteTable = field(default_factory=SuiteTable)
    complete: Callable[[Any, ModelConfig, Sequence[Any]], Any] = as_given
    check: Callable[[Any, Facts], None] = accept_all
    remarks: Callable[[Any], list[str]] = nothing_to_remark
    inputs: Callable[[Any, Facts], dict[str, str]] = no_inputs
    semantics: Callable[[Any], dict[str, Any]] = plain_semantics
    streams: bool = False
    timing: bool = False
    preload: tuple[str, ...] = ()
    positions: Callable[[Any], int] = no_positions

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise ValueError(
                f"suite {self.name}: run={self.run!r} is no function; give it "
                "run(context, config) -> SuiteResult."
            )
        if not self.name.isidentifier():
            raise ValueError(f"suite name {self.name!r} is no identifier: use letters, digits, _.")
        if self.version < 1:
            raise ValueError(f"suite {self.name}: version={self.version} is too small; use 1.")
        if not (isinstance(self.config, type) and dataclasses.is_dataclass(self.config)):
            raise ValueError(
                f"suite {self.name}: config={self.config!r} is no dataclass; give the class that "
                "holds its settings, with a default for each."
            )
        if self.timing and self.inputs is no_inputs:
            raise ValueError(
                f"suite {self.name} measures time, which belongs to a machine: add "
                "inputs=machine_inputs, so that another machine measures anew."
            )
        reads = {f.name for f in dataclasses.fields(self.config)} & {"path", "paths", "files"}
        if reads and self.inputs is no_inputs:
            raise ValueError(
                f"suite {self.name} has the setting {min(reads)}, of which the key holds names "
                "alone: add inputs=..., the hashes of the files that it reads."
            )
        if self.table.empty:
            raise ValueError(
                f"suite {self.name} has no table, so no report would show its figures: add "
                "table=SuiteTable(columns=(FigureColumn(METRIC, HEADER, UNIT),))."
            )


def require_figures(suite: Suite, result: object) -> None:
    """Raise ValueError for a result that no table could show as the suite declares it.

    No figures, two of one name, none of a column's name, or inputs with names of the record's own.
    """
    if not isinstance(result, SuiteResult) or not result.metrics:
        raise ValueError(
            f"suite {suite.name} returned no figures: return SuiteResult([Metric(...), ...])."
        )
    names = Counter((metric.task, metric.name) for metric in result.metrics)
    (task, name), count = names.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"suite {suite.name} returned {count} figures called {name} of {task}: give each a "
            "name or a task of its own."
        )
    for column in suite.table.columns:
        found = {name for task, name in names if column.task in (None, task)}
        if not column.optional and column.metric not in found:
            of = "" if column.task is None else f" of {column.task}"
            raise ValueError(
                f"suite {suite.name} has a column of {column.metric}{of}, but returned "
                f"{', '.join(sorted(found)) or 'no figure of it'}: correct one of the two, or say "
                "FigureColumn(..., optional=True) if some runs have no such figure."
            )
    require_own_inputs(suite, result.inputs)


def require_own_inputs(suite: Suite, inputs: Mapping[str, str]) -> None:
    """Raise ValueError for a suite's input that has a name of the record's own."""
    if taken := OWN_INPUTS & inputs.keys():
        raise ValueError(
            f"suite {suite.name} has an input called {min(taken)}, under which records keep "
            "another hash: call it otherwise."
        )
