"""What a checkpoint format is, and what reading and writing one has in common.

No module of this package imports torch before tensors are read or written, so that formats can be
listed, and configurations read, at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from quant.errors import ArtifactError, SchemeError
from quant.levels import uniform
from quant.levels.base import Levels
from quant.parts import Part
from quant.scheme import BITS, GRIDS, SCALE_DTYPES, Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.checkpoint.operators import Operators
    from quant.linear import Packed
    from quant.weight import QuantizedWeight

    Shape = tuple[int, int] | None
    Tensors = Mapping[str, Tensor]
    Read = tuple[Packed, Scheme, int]
    Entries = dict[str, tuple[tuple[int, ...], torch.dtype]]

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A checkpoint format; all functions are those of its module.

    name          as people and the command line say it: the name of its file with - for _.
    title         as tables and messages say it: "GPTQ v1".
    quant_method  the value in a quantization_config that stands for it (several formats may share
                  one), and `variant` what else is said there, for messages: "version gemm".
    readers       who loads such a checkpoint, for `bitsweep export --help`.
    parts         names of the tensors of a layer, without the layer's; None: those of the levels
                  as quant.linear.pack names them. `codes` is the one that every quantized layer has
                  and no other, `scales` the one whose type is that of the scales; None: parse says
                  their type.
    matches       whether a quantization_config is of this format; only one format may say so.
    parse         matches' configuration to what it says; the text is how errors name the
                  configuration. ArtifactError names the field, its value and what can be read.
    zero_points   how sure the meaning of the stored zero-points is, for records and people.
    read_layer    (tensors by part, what parse gave, the layer's name, (outputs, inputs) of its
                  module or None) to the buffers of QuantLinear, the scheme and the inputs.
                  ArtifactError names the tensor that is missing, damaged or does not fit.
    writer        None for a format that is only read.
    config_file   a file beside config.json in which early checkpoints say their quantization.
    zeros_of_0    what to know of stored zero-points that stand for 0, where readers disagree.
    settle        (what parse gave, tensors of some layers by part, how errors name the checkpoint)
                  to the same with what its configuration left open found from the tensors.
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

    @property
    def configuration(self) -> str:
        """How a quantization_config names it: "awq (version gemm)"."""
        return f"{self.quant_method} ({self.variant})" if self.variant else self.quant_method


@dataclass(frozen=True)
class Writer:
    """How a format is written.

    refuses       why it cannot hold a scheme (or one layer of it, where one is given): the rest of
                  a sentence about the layer or the checkpoint, with the way out. None: it can.
    entries       shape and type of every tensor that write_layer makes, in the order of the file.
    write_layer   the tensors of one layer; ArtifactError for values that the format cannot hold.
    describe      the quantization_config of a model.
    notes         what its readers make of such layers that a user must know; one sentence each.
    own           Bitsweep's artifacts may have this format; its tensors are those of
                  quant.linear.pack, and may be read back as such before the artifact is complete.
    stem          what the names of the files of tensors begin with.
    """

    refuses: Callable[[Scheme, StoredLayer | None], str | None]
    entries: Callable[[Scheme, StoredLayer], Entries]
    write_layer: Callable[[QuantizedWeight, StoredLayer], Packed]
    describe: Callable[[QuantizedModel], dict[str, Any]]
    notes: Callable[[Scheme, Sequence[StoredLayer]], list[str]]
    own: bool = False
    stem: str = "model"


@dataclass(frozen=True)
class StoredLayer:
    """A layer to be written, as far as it is known before its codes are.

    module     "Linear" for nn.Linear and what is derived from it, otherwise the name of its class.
    dtype      the type of the model's other tensors; None keeps the type of the scales.
    scattered  the columns of a group lie apart, and a tensor must say where.
    """

    name: str
    outputs: int
    inputs: int
    module: str = "Linear"
    dtype: torch.dtype | None = None
    scattered: bool = False


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model as far as its quantization_config describes it.

    layers     full names of the quantized layers.
    linears    full names of the nn.Linear that stay as they are.
    act_order  a layer has groups whose columns lie apart.
    method     what made the weights, as JSON; producer is who wrote them.
    """

    scheme: Scheme
    layers: tuple[str, ...]
    linears: tuple[str, ...]
    act_order: bool
    method: Config
    producer: str

    def meta(self) -> dict[str, Any]:
        """What Bitsweep adds to the configuration of any format."""
        return {"producer": self.producer, "grid": self.scheme.grid, "method": dict(self.method)}


@dataclass(frozen=True)
class CheckpointFormat:
    """The format of one quantized checkpoint, as its quantization_config says it.

    group_size  columns a group; None is one group per row (-1 in the file).
    act_order   the columns of a group may lie apart, and a tensor says where.
    levels      as in Scheme; of a format for any levels the name of the kind, which
                quant.checkpoint.choose replaces by the kind that the reader knows.
    grid        as in Scheme, from Bitsweep's own metadata; "minmax" when it is not said.
    scale_dtype as in Scheme, where the format has no tensor that tells it.
    producer    who wrote it, empty when it is not said.
    declared    whether the file says what its zero-points mean, where formats can be mistaken.
    evidence    what showed it, where the file does not say.
    signed      layers that were looked at hold negative scales, which turn their grids around.
    wraps       they hold zero-points of 0 that are stored as -1 (Format.zeros_of_0).
    operators   by layer, what stands in front of it (quant.checkpoint.operators).
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
    operators: Operators = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The format as people call it: "GPTQ v1"."""
        return f"{self.format.title}, input operators" if self.operators else self.format.title

    @property
    def zero_points(self) -> str:
        """How sure the meaning of the stored zero-points is, in words, for records and people."""
        return self.format.zero_points(self)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors of a layer, without the layer's."""
        if self.format.parts is not None:
            return self.format.parts
        grid = (each.buffer for each in self.scheme(self.scale_dtype).kind.tensors)
        return (self.format.codes, *grid, "g_idx")

    def scheme(self, scale_dtype: torch.dtype | str) -> Scheme:
        """The scheme of a layer whose scales are stored as scale_dtype."""
        return Scheme(
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            levels=self.levels,
            grid=self.grid,
            scale_dtype=dtype_name(scale_dtype),
        )


def validated(parsed: CheckpointFormat, where: str) -> CheckpointFormat:
    """The same format; ArtifactError when its values make no scheme."""
    try:
        parsed.scheme(parsed.scale_dtype)
    except SchemeError as error:
        raise ArtifactError(f"{where} makes no scheme: {error}") from error
    return parsed


def read_bits(config: Config, where: str, key: str = "bits", allowed: Sequence[int] = BITS) -> int:
    """A bit width that the format and Bitsweep have."""
    bits: Any = config.get(key)
    if isinstance(bits, bool) or bits not in allowed:
        raise ArtifactError(
            f"{where}.{key}={bits!r} cannot be read; expected one of "
            f"{', '.join(map(str, allowed))}."
        )
    return int(bits)


def read_group_size(config: Config, where: str) -> int | None:
    """Columns of a group; None for one group per row (-1 in the file)."""
    size = config.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
        raise ArtifactError(
            f"{where}.group_size={size!r} cannot be read; expected a number of columns, or -1 for "
            "one group per row."
        )
    return None if size == -1 else size


def read_flag(config: Config, name: str, where: str, default: bool | None) -> bool:
    """True or false; `default` stands for a key that is missing."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ArtifactError(f"{where}.{name}={value!r} cannot be read; expected true or false.")
    return value


def read_meta(config: Config) -> tuple[str, str]:
    """Grid and producer from Bitsweep's metadata or GPTQModel's; the producer may be empty."""
    meta = config.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    grid = str(meta["grid"]) if meta.get("grid") in GRIDS else "minmax"
    # GPTQModel has a list of quantizers ("gptqmodel:4.2.5").
    found = meta.get("producer") or meta.get("quantizer") or ""
    return grid, ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def declaration(kind: Levels) -> list[dict[str, Any]]:
    """The tensors of a grid as JSON, for a configuration that holds any levels."""
    return [asdict(each) for each in kind.tensors]


def refuse_levels(scheme: Scheme, name: str) -> str | None:
    """Why a format of uniform grids cannot hold other levels; None when they are uniform."""
    if scheme.kind == uniform.LEVELS:
        return None
    return (
        f"has {scheme.kind.name} levels, which {name} cannot hold: its levels are scale * (code - "
        "zero), evenly spaced. They live in Bitsweep's own artifact alone; quantize with a uniform "
        "scheme such as w2g64 to export."
    )


def check_scales(scales: Tensor, parsed: CheckpointFormat, name: str) -> None:
    """ArtifactError for scales that are not finite or 0, and for negative ones that nobody said.

    A scale of 0 makes all codes of its group one value: the weights underflowed when it was
    written. A negative one turns its grid around, which is well defined; some producers (AutoRound)
    write them, and tables mark such a checkpoint.
    """
    import torch

    if not bool(torch.isfinite(scales).all()):
        raise ArtifactError(f"{name} holds NaN or infinite values; make it again.")
    zero = int((scales == 0).sum())
    if zero:
        raise ArtifactError(
            f"{name}: {zero} of {scales.numel()} scales are 0, which makes every weight of their "
            "groups 0: the file is damaged, or they were too small for their type; get the file "
            "again, or quantize the original with scale_dtype=float32."
        )
    negative = int((scales < 0).sum())
    if negative and not parsed.signed:
        raise ArtifactError(
            f"{name}: {negative} of {scales.numel()} scales are negative, and those of other "
            "layers are not: the file is damaged; get it again."
        )


def dtype_name(dtype: torch.dtype | str) -> str:
    """The name of a type as schemes have it: "float16"."""
    return str(dtype).removeprefix("torch.")


def scale_dtypes() -> tuple[torch.dtype, ...]:
    """The types that scales may be stored in."""
    import torch

    return tuple(getattr(torch, name) for name in SCALE_DTYPES)
