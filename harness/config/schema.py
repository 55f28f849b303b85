"""The schema of conf/: plain dataclasses that Hydra composes YAML into.

Hydra composes YAML into these types (unknown keys and wrong types are refused there); everything
below the command line sees only these dataclasses. Field types stay within what OmegaConf 2.3
knows: no Literal, no unions except with None.
"""

# No `from __future__ import annotations`: OmegaConf reads the annotations as types.

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from omegaconf import MISSING, OmegaConf

from harness.data.config import CalibConfig


@dataclass
class ModelConfig:
    """Where a model comes from: embedded, hub (id is a repository), local (path is a folder) or
    dummy (random weights of an architecture: a name in quant.measure.architectures or a
    config.json).

    trust_remote_code runs the Python files that the model's folder brings. protocols and tasks are
    what suites measure unless they are told otherwise; expected holds published full-precision
    perplexities by protocol.
    """

    name: str = MISSING
    source: str = MISSING
    id: Optional[str] = None
    path: Optional[str] = None
    architecture: Optional[str] = None
    revision: Optional[str] = None
    dtype: str = "float32"
    context: Optional[int] = None  # tokens; None: the model's own maximum
    attention: str = "sdpa"  # attention implementation of transformers: sdpa or eager
    trust_remote_code: bool = False  # run Python that comes with the model: read it first
    levels: Optional[str] = None  # module of the levels of a quantized model, if not built in
    protocols: List[str] = field(default_factory=list)
    tasks: List[str] = field(default_factory=list)
    expected: Dict[str, float] = field(default_factory=dict)


@dataclass
class SchemeConfig:
    """What a weight may be; bits 16 is not quantized."""

    bits: int = MISSING
    group_size: Optional[int] = None
    symmetric: bool = False
    levels: str = "uniform"
    grid: str = "minmax"
    scale_dtype: str = "float16"


@dataclass
class RuntimeConfig:
    device: str = "cpu"
    kernel: str = "auto"  # auto, cuda, cpu, reference
    activations: str = "auto"  # hidden states between blocks: auto, cuda, cpu, disk
    stream: str = "auto"  # measure block by block: auto (if it does not fit), always, never
    threads: Optional[int] = None
    timeout_s: Optional[float] = None  # of one cell
    record_host: bool = False  # write the machine's name into records


@dataclass
class TrackerConfig:
    name: str = MISSING  # none or wandb
    mode: str = "offline"
    project: str = "bitsweep"
    entity: Optional[str] = None


@dataclass
class PathsConfig:
    results: str = MISSING  # records, artifacts, reports
    data: Optional[str] = None  # root for relative local text and task files


@dataclass
class CellConfig:
    """One cell of a sweep: model x method x scheme x calibration x seed, and its suites.

    method     `solver` names the module of the solver, or is null for full precision; the other
               keys are the solver's options.
    transform  name -> `module` and options of what is done to a block before its layers are solved.
    suite      name -> `module` and options of what is measured.

    The types of the options are in the modules (harness.config.options reads them there).
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    method: Dict[str, Any] = field(default_factory=dict)
    transform: Dict[str, Any] = field(default_factory=dict)
    scheme: SchemeConfig = field(default_factory=SchemeConfig)
    calib: CalibConfig = field(default_factory=CalibConfig)
    suite: Dict[str, Any] = field(default_factory=dict)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = 0
    name: str = "run"  # names the report and the tracker's group; never part of a key


@dataclass
class SweepConfig(CellConfig):
    """What Hydra composes: one cell's values, and the products whose union a sweep runs.

    Every entry of `sweep` maps overrides, as on the command line, to one value or a list of them.
    """

    sweep: List[Dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One composed cell and the overrides that make it.

    folder  of the user, laid out like conf/, whose files may name modules that lie beside them.
    """

    config: CellConfig
    overrides: Tuple[str, ...]
    folder: Optional[Path] = None


def as_yaml(cell: Cell) -> str:
    """One cell as YAML, headed by the overrides that make it."""
    text = OmegaConf.to_yaml(OmegaConf.structured(cell.config))
    return f"# {' '.join(cell.overrides)}\n{text}"
