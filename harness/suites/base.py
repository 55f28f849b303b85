"""The interface of suites: a spec of what a suite reads, measures and adds to tables.

A suite is one module that ends in `SUITE = Suite(...)`. Importing it loads no heavy library: `run`
imports torch and the like.
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
    from harness.records.kept import Kept
    from harness.records.record import Metric
    from quant.budget import AnyScheme
    from quant.memory.plan import Item
    from quant.memory.shapes import ModelShape
    from quant.transforms.base import Transform

    Streamed = Callable[[Sequence[Tensor], Callable[[int, int], None]], Iterator[Tensor]]


def _no_reference() -> Any:
    raise ValueError("this model is not quantized, so there are no packed weights to load again.")


# Reserved names of a stage's inputs: a suite's input of the same name would overwrite them.
OWN_INPUTS = frozenset({"model", "calibration", "code", "artifact"})


@dataclass(frozen=True)
class SuiteContext:
    """The packed model under test, and access to its full-precision baseline.

    model       the loaded Hugging Face causal LM, in eval mode, on `device`.
    tokenizer   its tokenizer.
    load_baseline   loads the full-precision model of the cell (same dtype and device); returns
                `model` itself if the cell is not quantized.
    data_dir    folder in which relative paths of texts and task files are tried first.
    context_length  tokens of a window; None: the model's own maximum.
    packed      folder of the packed weights under test; None for full precision, random weights.
    source      folder of the full-precision weights; None if they are not here (has_original).
    file        GGUF file that the model under test was read from, if it is not quantized anew.
    streamed    set if the model runs block by block: streamed(batches, done) yields the logits of
                batches of ids in order; the blocks of `model` then have no weights.
    progress    to be called as progress(done, total, what) from time to time; never None.
    has_original  whether load_baseline returns the original model; False for a checkpoint that was
                quantized elsewhere, whose baseline is its own weights, dequantized.
    activations  where hidden states wait between blocks, for a suite that runs blocks itself
                (runtime.activations): "auto", "cuda", "cpu" or "disk".
    kept        files on the full-precision model that suites make once for all cells of it; None:
                nothing is kept.
    scratch     folder for them on disk, which the suite makes and removes; None: no such folder.
    devices     all that some model of the cell lies on, if several (quant.spread); `device`, where
                tokens go in and logits come out, is the first.
    load_reference  loads the quantized model again with the reference kernel; ValueError if there
                is no artifact.
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
    packed: Path | None = None
    source: Path | None = None
    file: Path | None = None
    streamed: Streamed | None = None
    activations: str = "auto"
    scratch: Path | None = None
    kept: Kept | None = None
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuiteResult:
    """Figures, hashes of the data they were measured on, and scores of single documents.

    failures  causes of tasks without figures, by name of the task. The figures of other tasks are
              kept, and the suite counts as failed, so that it is tried again.
    """

    metrics: list[Metric]
    inputs: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Facts of a cell that are known before anything is loaded.

    key       the key of the suite's configuration, for messages: "suite.perplexity".
    model     the model's name.
    shape     its config.json (its text part if multimodal); None if it is not on this machine.
    data_dir  folder of relative paths (paths.data).
    device    cpu, cuda or cuda:N; threads: runtime.threads.
    devices   further devices over which a model of the cell is spread.
    has_original  False for a checkpoint that was quantized elsewhere (as in SuiteContext).
    file      GGUF file of the model under test (as in SuiteContext).
    tokenizer  folder with the files of its tokenizer; None if it is not on this machine.
    schemes   the schemes that layers in the blocks have, or may be given; none: full precision.
    transforms  of the quantization, with their options.
    """

    key: str
    model: str
    shape: Mapping[str, Any] | None = None
    data_dir: str | None = None
    device: str = "cpu"
    threads: int | None = None
    devices: tuple[str, ...] = ()
    has_original: bool = True
    file: Path | None = None
    tokenizer: Path | None = None
    schemes: tuple[AnyScheme, ...] = ()
    transforms: tuple[tuple[Transform, Any], ...] = ()


@dataclass(frozen=True)
class Sample:
    """The units (windows of a text, documents of a task) that a figure is going to be measured on.

    count  None: not known before text or task are read.
    share  True: the figure is the share of right answers; False: the mean of losses, or its
           exponential.
    """

    task: str
    metric: str
    unit: str
    count: int | None
    share: bool


def no_samples(_config: Any, _facts: Facts) -> list[Sample]:
    """The samples of a suite whose figures have no sampling units."""
    return []


def accept_all(_config: Any, _facts: Facts) -> None:
    """The check of a suite for which every configuration is valid."""


def no_inputs(_config: Any, _facts: Facts) -> dict[str, str]:
    """The inputs of a suite that reads only the model."""
    return {}


def machine_inputs(_config: Any, facts: Facts) -> dict[str, str]:
    """The inputs of a suite that measures time: the machine, on which times depend."""
    threads = facts.threads if facts.device == "cpu" else None
    more = [gpu(device) for device in facts.devices]
    return {"machine": digest([machine(), gpu(facts.device), threads, *([more] if more else [])])}


def as_given(config: Any, _model: ModelConfig, _others: Sequence[Any]) -> Any:
    """`complete` of a suite that needs no settings of its model or other suites."""
    return config


def nothing_to_remark(_config: Any) -> list[str]:
    """`remarks` of a suite that has none."""
    return []


def no_positions(_config: Any) -> int:
    """`positions` of a suite without a KV cache."""
    return 0


def plain_semantics(config: Any) -> dict[str, Any]:
    """All settings, with the paths in keys path, paths and files reduced to file names."""
    return without_folders(dataclasses.asdict(config))


def at_least_one(key: str, value: int | None) -> None:
    """Raise ConfigError for a number below 1; None passes."""
    if value is not None and value < 1:
        raise ConfigError(f"{key}={value} is too small; use 1 or more.")


@dataclass(frozen=True)
class Suite:
    """A suite: its settings, its measurement, and its columns in reports.

    name       its name in records and its key below `suite`; a Python identifier.
    version    part of the key; raised when the same input gives other figures.
    config     the settings: a plain dataclass with types that OmegaConf supports.
    run        measures one model.
    table      its columns in reports (harness.report.columns).
    complete   complete(config, configuration of the model, configurations of the other suites):
               the settings with defaults filled in; called before anything else reads them.
    check      raises ConfigError, in one sentence, for impossible settings.
    remarks    sentences for the plan on parts that cannot be measured while others can.
    inputs     hashes of the data it reads besides the model; part of the key.
    semantics  the settings that go into key and record.
    samples    what its figures will be measured on, for the plan's minimum detectable effects.
    memory     memory(config, facts, shape: quant.memory.shapes.ModelShape) -> the items
               (quant.memory.plan) that it holds beside the weights of the whole model, for the
               plan; None: nothing is planned.
    streams    whether it can measure a model block by block (SuiteContext.streamed).
    loads      False: it reads the files itself (SuiteContext.packed, source); its model has no
               weights, and none of an earlier suite stay in memory.
    timing     whether it measures time: figures depend on the machine, random weights suffice.
    preload    modules to import once for all cells.
    positions  maximum of tokens in the KV cache; random weights reserve memory for them.

    Raises ValueError for an invalid or incomplete spec.
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
    samples: Callable[[Any, Facts], Sequence[Sample]] = no_samples
    memory: Callable[[Any, Facts, ModelShape], Sequence[Item]] | None = None
    streams: bool = False
    loads: bool = True
    timing: bool = False
    preload: tuple[str, ...] = ()
    positions: Callable[[Any], int] = no_positions

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise ValueError(
                f"suite {self.name}: run={self.run!r} is not a function; use "
                "run(context, config) -> SuiteResult."
            )
        if not self.name.isidentifier():
            raise ValueError(
                f"suite name {self.name!r} is not an identifier: use letters, digits, _."
            )
        if self.version < 1:
            raise ValueError(f"suite {self.name}: version={self.version} is too small; use 1.")
        if not (isinstance(self.config, type) and dataclasses.is_dataclass(self.config)):
            raise ValueError(
                f"suite {self.name}: config={self.config!r} is not a dataclass; use the class that "
                "holds its settings, with a default for each."
            )
        if self.timing and self.inputs is no_inputs:
            raise ValueError(
                f"suite {self.name} measures time, which depends on the machine: add "
                "inputs=machine_inputs, so that every machine has figures of its own."
            )
        reads = {f.name for f in dataclasses.fields(self.config)} & {"path", "paths", "files"}
        if reads and self.inputs is no_inputs:
            raise ValueError(
                f"suite {self.name} has the setting {min(reads)}, whose contents are not in the "
                "key: add inputs=..., the hashes of the files that it reads."
            )
        if self.table.empty:
            raise ValueError(
                f"suite {self.name} has no table, so reports could not show its figures: add "
                "table=SuiteTable(columns=(FigureColumn(METRIC, HEADER, UNIT),))."
            )


def require_figures(suite: Suite, result: object) -> None:
    """Raise ValueError for a result that does not match the suite's columns.

    That is: no figures, two of one name, none for a column, or inputs with reserved names.
    """
    if not isinstance(result, SuiteResult) or not result.metrics:
        raise ValueError(
            f"suite {suite.name} returned no figures: return SuiteResult([Metric(...), ...])."
        )
    names = Counter((metric.task, metric.name) for metric in result.metrics)
    (task, name), count = names.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"suite {suite.name} returned {count} figures named {name} of task {task}: give each "
            "a name or a task of its own."
        )
    for column in suite.table.columns:
        found = {name for task, name in names if column.task in (None, task)}
        if not column.optional and column.metric not in found:
            of = "" if column.task is None else f" of {column.task}"
            raise ValueError(
                f"suite {suite.name} has a column of {column.metric}{of}, but returned "
                f"{', '.join(sorted(found)) or 'no figure of it'}: correct one of the two, or use "
                "FigureColumn(..., optional=True) if some runs have no such figure."
            )
    require_own_inputs(suite, result.inputs)


def require_own_inputs(suite: Suite, inputs: Mapping[str, str]) -> None:
    """Raise ValueError for an input of a suite with a reserved name."""
    if taken := OWN_INPUTS & inputs.keys():
        raise ValueError(
            f"suite {suite.name} has an input named {min(taken)}, a name that records reserve for "
            "another hash: rename it."
        )
