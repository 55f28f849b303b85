"""Format and Writer: the spec of a checkpoint format, with helpers for parsing and checking.

The modules of this package import torch only when tensors are read or written, so that formats can
be listed and configurations parsed quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from quant.checkpoint.layer_names import settings_of
from quant.errors import ArtifactError, SchemeError
from quant.head import EMBEDDINGS, NAMES, is_embeddings, is_head
from quant.levels import uniform
from quant.levels.base import Levels
from quant.parts import Part
from quant.scheme import BITS, SCALE_DTYPES, Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.budget import Budget
    from quant.checkpoint.operators import Operators
    from quant.linear import Packed
    from quant.weight import FactoredWeight, QuantizedWeight

    Shape = tuple[int, int] | None
    Tensors = Mapping[str, Tensor]
    Read: TypeAlias = QuantizedWeight | FactoredWeight
    Entries = dict[str, tuple[tuple[int, ...], torch.dtype]]

Config = Mapping[str, Any]
_scheme = lru_cache(maxsize=64)(Scheme)  # one for all layers: checking it takes as long as a layer


@dataclass(frozen=True)
class Format:
    """A checkpoint format; all of its functions must be module-level.

    name          name on the command line: the module's name with - instead of _.
    title         name in tables and messages: "GPTQ v1".
    quant_method  its value in a quantization_config (several formats may share one); `variant` is a
                  further condition, for messages: "version gemm".
    readers       tools that read the format, for `bitsweep export --help`.
    parts         names of the tensors of a layer, without the layer's name; None: those of the
                  levels, as in quant.linear.pack. `codes` is the part with the codes ("": there
                  are none), and `marks` are the parts that exactly the quantized layers have; ():
                  the codes. `scales` is the part whose dtype is scale_dtype; None: parse returns
                  the dtype.
    matches       matches(config): whether a quantization_config has this format; exactly one format
                  must match.
    parse         parse(config, where) -> CheckpointFormat; `where` names the configuration in
                  errors. ArtifactError names the field, its value and the valid values.
    zero_points   zero_points(parsed): how the meaning of the stored zero-points is known, for
                  records and people.
    read_layer    (tensors by part, parsed, layer name, (outputs, inputs) of its module or None) ->
                  the weight, its codes still packed where codes.Words has their order.
                  ArtifactError names the tensor that is missing, damaged or does not fit.
    writer        None for a format that is only read.
    config_file   file beside config.json that has the quantization settings of early checkpoints.
    zeros_of_0    note on stored zero-points that mean 0, if readers disagree about them.
    settle        (parsed, tensors of some layers by part, where) -> parsed, completed with what the
                  configuration does not declare.
    library       library_name of model cards: what loads the model.
    counts_files  whether the stored bits of a layer are all bytes of its parts, because its scheme
                  cannot say them (grids that are quantized again, tables).
    check_metadata  (parsed, layer names, metadata of the safetensors headers, where) raises
                  ArtifactError where the headers contradict the configuration; None: they say
                  nothing of layers.
    pickled       next step for a checkpoint in .bin files, where converting them does not help: an
                  end of the sentence. "": it helps.
    """

    name: str
    title: str
    quant_method: str
    readers: str
    parts: tuple[str, ...] | None
    codes: str
    scales: str | None
    matches: Callable[[Config], bool]
    parse: Callable[[Config, str], CheckpointFormat]
    zero_points: Callable[[CheckpointFormat], str]
    read_layer: Callable[[Tensors, CheckpointFormat, str, Shape], Read]
    variant: str = ""
    writer: Writer | None = None
    config_file: str | None = None
    zeros_of_0: str = ""
    settle: Callable[[CheckpointFormat, Mapping[str, Tensors], str], CheckpointFormat] | None = None
    marks: tuple[str, ...] = ()
    counts_files: bool = False
    check_metadata: (
        Callable[[CheckpointFormat, Iterable[str], Mapping[str, str], str], None] | None
    ) = None
    pickled: str = ""
    library: str = "transformers"

    def first(self, parts: Sequence[str]) -> str:
        """Return the part that stands for a layer in messages: the codes, or its first."""
        return self.codes or parts[0]

    @property
    def configuration(self) -> str:
        """How a quantization_config identifies the format: "awq (version gemm)"."""
        return f"{self.quant_method} ({self.variant})" if self.variant else self.quant_method


@dataclass(frozen=True)
class Writer:
    """How to write a format.

    refuses      why the format cannot store a scheme (or one layer of it, if given): the rest of a
                 sentence about the layer or checkpoint, with the next step. None: it can.
    entries      shape and dtype of every tensor that write_layer makes, in file order.
    write_layer  the tensors of one layer; ArtifactError for values that the format cannot store.
    describe     the quantization_config of a model.
    notes        limitations of the format's readers for such layers, one sentence each.
    own          whether Bitsweep's artifacts may have this format. Its tensors are then those of
                 quant.linear.pack, and may be read back before the artifact is complete.
    mixes        whether its configuration can give layers schemes of their own.
    stem         beginning of the names of the tensor files.
    factored     whether it stores factored weights (quant.weight), and nothing else.
    """

    refuses: Callable[[Any, StoredLayer | None], str | None]
    entries: Callable[[Any, StoredLayer], Entries]
    write_layer: Callable[[Any, StoredLayer], Packed]
    describe: Callable[[QuantizedModel], dict[str, Any]]
    notes: Callable[[Any, Sequence[StoredLayer]], list[str]]
    own: bool = False
    mixes: bool = False
    stem: str = "model"
    factored: bool = False


@dataclass(frozen=True)
class StoredLayer:
    """A layer to be written, as far as it is known before its codes are read.

    module     "Linear" for nn.Linear and its subclasses, otherwise the name of the class.
    dtype      dtype of the model's other tensors; None keeps the dtype of the scales.
    scattered  whether the columns of a group are not adjacent, so that a tensor must store their
               groups.
    """

    name: str
    outputs: int
    inputs: int
    module: str = "Linear"
    dtype: torch.dtype | None = None
    scattered: bool = False


@dataclass(frozen=True)
class QuantizedModel:
    """The properties of a quantized model that its quantization_config describes.

    scheme     that of most layers in the blocks, with that of the head if it is quantized.
    layers     full names of the quantized layers, without the head.
    linears    full names of the nn.Linear layers that are not quantized.
    act_order  whether a layer has groups whose columns are not adjacent.
    method     what made the weights, as JSON; producer is the program that wrote them.
    head       full name of the quantized head; None if it is not quantized.
    own        schemes of the layers in the blocks that have another than `scheme`, by full name.
    """

    scheme: Any
    layers: tuple[str, ...]
    linears: tuple[str, ...]
    act_order: bool
    method: Config
    producer: str
    head: str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_head(self) -> tuple[str, Scheme] | None:
        """The head and its scheme, if it needs other settings than the layers in the blocks."""
        scheme = self.scheme.head
        if self.head is None or scheme is None or scheme == self.scheme.without_head:
            return None
        return self.head, scheme

    def meta(self) -> dict[str, Any]:
        """Metadata that Bitsweep adds to the configuration of any format."""
        found = {"producer": self.producer, "grid": self.scheme.grid, "method": dict(self.method)}
        grids = {name: each.grid for name, each in self.own.items()}
        if set(grids.values()) - {self.scheme.grid}:
            found["grids"] = grids
        return found if self.own_head is None else {**found, "head_grid": self.own_head[1].grid}


@dataclass(frozen=True)
class CheckpointFormat:
    """The format of one quantized checkpoint, parsed from its quantization_config.

    group_size   columns per group; None is one group per row (-1 in the file).
    act_order    whether the columns of a group may be not adjacent (a tensor has their groups).
    levels       as in Scheme; a format for any levels has the name of the kind here, which
                 quant.checkpoint.choose replaces by the reader's kind.
    grid         as in Scheme, from Bitsweep's metadata; "minmax" if it is not declared.
    scale_dtype  as in Scheme, for a format without a tensor that has this dtype.
    producer     program that wrote the checkpoint; "" if it is not declared.
    declared     whether the file declares what its zero-points mean, if formats can be confused.
    evidence     what showed their meaning, if the file does not declare it.
    signed       whether examined layers have negative scales, which reverse their grids.
    wraps        whether they have zero-points of 0 that are stored as -1 (Format.zeros_of_0).
    packing      how codes lie in words, for a format that has had several ways; "" if unknown.
    operators    operators by layer (quant.checkpoint.operators).
    head         the fields of this class that differ for the head (quant.head).
    embeddings   those of quantized embeddings (quant.checkpoint.tables); empty if they are not.
    own          the fields that differ for other layers, by full name or regular expression
                 (quant.checkpoint.layer_names); None: the layer is in full precision.
    mixture      layers by scheme, in words, if there are several in the blocks.
    budget       that of factored layers (quant.budget), of which the fields of grids say nothing;
                 None: layers have grids.
    """

    format: Format
    bits: int
    group_size: int | None
    symmetric: bool
    act_order: bool
    levels: str | Part | Levels = uniform.LEVELS.name
    grid: str = "minmax"
    scale_dtype: str = "float16"
    producer: str = ""
    declared: bool = True
    evidence: str = ""
    signed: bool = False
    wraps: bool = False
    packing: str = ""
    operators: Operators = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    embeddings: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Config | None] = field(default_factory=dict)
    mixture: str = ""
    budget: Budget | None = None

    def of(self, layer: str) -> CheckpointFormat:
        """Return the settings of one layer, by its full name."""
        own = self.own_of(layer)
        if self.embeddings and is_embeddings(layer):
            own = self.embeddings
        elif not own and is_head(layer):
            own = self.head
        return replace(self, head={}, embeddings={}, own={}, **own) if own else self

    def own_of(self, layer: str) -> Config | None:
        """Return the fields that differ for one layer; None if it is in full precision."""
        return settings_of(layer, self.own, {})

    @property
    def name(self) -> str:
        """Name of the format for people: "GPTQ v1"."""
        words = [self.format.title]
        words += ["mixed precision"] * bool(self.mixture)
        words += ["quantized embeddings"] * bool(self.embeddings)
        words += ["input operators"] * bool(self.operators)
        return ", ".join(words)

    @property
    def zero_points(self) -> str:
        """How the meaning of the stored zero-points is known, for records and people."""
        return self.format.zero_points(self)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors of a layer, without the layer's name."""
        if self.format.parts is not None:
            return self.format.parts
        grid = (each.buffer for each in self.scheme(self.scale_dtype).kind.tensors)
        return (self.format.codes, *grid, "g_idx")

    def scheme(self, scale_dtype: torch.dtype | str) -> Scheme:
        """Return the scheme of a layer whose scales are stored as scale_dtype."""
        make = _scheme if isinstance(self.levels, str) else Scheme
        settings = (self.bits, self.group_size, self.symmetric, self.levels, self.grid)
        return make(*settings, dtype_name(scale_dtype))


def validated(parsed: CheckpointFormat, where: str) -> CheckpointFormat:
    """Return the same format; ArtifactError if its values do not form a scheme."""
    try:
        for layer in ("", *NAMES[:1], *EMBEDDINGS[:1]):
            each = parsed.of(layer)
            each.scheme(each.scale_dtype)
    except SchemeError as error:
        raise ArtifactError(f"{where} is not a valid scheme: {error}") from error
    return parsed


def read_bits(config: Config, where: str, key: str = "bits", allowed: Sequence[int] = BITS) -> int:
    """Read a bit width that both the format and Bitsweep support."""
    bits: Any = config.get(key)
    if isinstance(bits, bool) or bits not in allowed:
        raise ArtifactError(
            f"{where}.{key}={bits!r} cannot be read; expected one of "
            f"{', '.join(map(str, allowed))}."
        )
    return int(bits)


def read_group_size(config: Config, where: str) -> int | None:
    """Read the columns per group; None for one group per row (-1 in the file)."""
    size = config.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
        raise ArtifactError(
            f"{where}.group_size={size!r} cannot be read; expected a number of columns, or -1 for "
            "one group per row."
        )
    return None if size == -1 else size


def read_flag(config: Config, name: str, where: str, default: bool | None) -> bool:
    """Read true or false; a missing key means `default`."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ArtifactError(f"{where}.{name}={value!r} cannot be read; expected true or false.")
    return value


def declaration(kind: Levels) -> list[dict[str, Any]]:
    """Describe the tensors of a grid as JSON, for a configuration that allows any levels."""
    return [asdict(each) for each in kind.tensors]


def refuse_levels(scheme: Scheme, name: str) -> str | None:
    """Return why a format of uniform grids cannot store other levels; None if they are uniform."""
    if scheme.kind == uniform.LEVELS:
        return None
    return (
        f"has {scheme.kind.name} levels, which {name} cannot store: its levels are scale * (code - "
        "zero), evenly spaced. Only Bitsweep's own artifact stores other levels; quantize with a "
        "uniform scheme such as w2g64 to export."
    )


def require_tensors(
    tensors: Tensors, names: Iterable[str], layer: str, otherwise: str = "does not belong to it"
) -> None:
    """Raise ArtifactError, naming the first of a layer's tensors that the files lack.

    otherwise  what the checkpoint's quantization_config does if the files are complete.
    """
    for name in names:
        if name not in tensors:
            raise ArtifactError(
                f"{layer}: tensor {layer}.{name} is missing; the layer has "
                f"{', '.join(sorted(tensors)) or 'none'}. The checkpoint is incomplete, or its "
                f"quantization_config {otherwise}."
            )


def check_scales(scales: Tensor, parsed: CheckpointFormat, name: str) -> None:
    """Raise ArtifactError for scales that are not finite or 0, and for unexpected negative ones.

    A scale of 0 makes all codes of its group one value: the weights underflowed when they were
    written. A negative scale reverses its grid, which is well defined; some producers (AutoRound)
    write them, and tables mark such a checkpoint.
    """
    low, high = (float(each) for each in scales.aminmax()) if scales.numel() else (1.0, 1.0)
    if not math.isfinite(low + high):  # one pass over sound scales; NaN is both ends
        raise ArtifactError(f"{name} has NaN or infinite values; quantize again.")
    zero = int((scales == 0).sum()) if low <= 0 else 0
    if zero:
        raise ArtifactError(
            f"{name}: {zero} of {scales.numel()} scales are 0, which makes every weight of their "
            "groups 0: the file is damaged, or they were too small for their type; download the "
            "file again, or quantize the original with scale_dtype=float32."
        )
    negative = int((scales < 0).sum()) if low < 0 else 0
    if negative and not parsed.signed:
        raise ArtifactError(
            f"{name}: {negative} of {scales.numel()} scales are negative, and those of other "
            "layers are not: the file is damaged; download it again."
        )


def dtype_name(dtype: torch.dtype | str) -> str:
    """Return the name of a dtype as schemes have it: "float16"."""
    return str(dtype).removeprefix("torch.")


def scale_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes in which scales may be stored."""
    import torch

    return tuple(getattr(torch, name) for name in SCALE_DTYPES)
