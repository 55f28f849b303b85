"""FileFormat: the spec of a format that is one file for a whole model, and what it is given.

Its module is one of quant.checkpoint.formats too, and ends in FORMAT = FileFormat(...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.checkpoint.formats.base import Config, StoredLayer
from quant.scheme import Scheme

if TYPE_CHECKING:
    from quant.checkpoint.tensors import Entry
    from quant.weight import QuantizedWeight


@dataclass(frozen=True)
class FileFormat:
    """A format that is one file for a whole model, which is written and not read as a checkpoint.

    All of its functions must be module-level.

    name, title, readers, library
             as in Format.
    suffix   what the file's name ends in: ".gguf".
    refuses  as in Writer.
    plan     plan(model) -> Planned, without writing; ArtifactError for what the file cannot hold.
    ours     ours(path): whether Bitsweep wrote the file there, so that it may be replaced.
    """

    name: str
    title: str
    readers: str
    library: str
    suffix: str
    refuses: Callable[[Scheme, StoredLayer | None], str | None]
    plan: Callable[[WholeModel], Planned]
    ours: Callable[[Path], bool]

    @property
    def quant_method(self) -> str:
        """What tags of model cards call the format."""
        return self.name


@dataclass(frozen=True)
class Planned:
    """A file that can be written.

    nbytes   of the file, about.
    packed   bytes of the tensors of quantized layers; others and other_bytes are the values and the
             bytes of all other tensors.
    notes    limitations of its readers, one sentence each.
    write    write(path) writes the file.
    """

    nbytes: int
    packed: int
    others: int
    other_bytes: int
    notes: tuple[str, ...]
    write: Callable[[Path], None]


@dataclass(frozen=True)
class WholeLayer:
    """A quantized layer of a model that becomes one file; read() gives its codes."""

    scheme: Scheme
    stored: StoredLayer
    read: Callable[[], QuantizedWeight]


@dataclass(frozen=True)
class WholeModel:
    """A quantized model that becomes one file.

    source   its folder, with the tokenizer.
    config   the fields of its class's configuration in transformers.
    layers   the quantized layers, by their names in the model.
    others   all other tensors, by their names in the model; tied ones once.
    scattered  whether act-order may have scattered the columns of groups.
    method   what made the weights, as JSON; producer is the program that writes the file.
    base     repositories of the full-precision model on the hub; licence its licence, if known.
    """

    source: Path
    config: Config
    scheme: Scheme
    layers: Mapping[str, WholeLayer]
    others: Mapping[str, Entry]
    scattered: bool
    method: Config
    producer: str
    base: tuple[str, ...] = ()
    licence: str | None = None
