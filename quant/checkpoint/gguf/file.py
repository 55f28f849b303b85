"""Read a GGUF file: its metadata, and its tensors dequantized one by one.

The package `gguf`, of the authors of the format, parses the file and dequantizes its types (some
are faster here, quant.checkpoint.gguf.blocks). It is imported only when a file is read.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.checkpoint.gguf.blocks import dequantized
from quant.errors import ArtifactError

PACKAGE = "gguf"
INSTALL = 'pip install "bitsweep[gguf]"'
SUFFIX = ".gguf"
_MAGIC = b"GGUF"
FLOATS = ("F32", "F16", "BF16", "F64")  # types that are not quantized
_PLAIN = ("F32", "F16", "F64")  # copied out of the mapped file


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file.

    shape  as PyTorch has it: (outputs, inputs).
    kind   type of its values in the file, such as "Q4_1".
    raw    what the package `gguf` read, memory-mapped.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    nbytes: int
    raw: Any

    def require_readable(self) -> None:
        """Raise ArtifactError if the package cannot dequantize the type."""
        if self.kind in _PLAIN:
            return
        from gguf import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        _, size = GGML_QUANT_SIZES[self.raw.tensor_type]
        try:
            dequantize(torch.zeros(1, size, dtype=torch.uint8).numpy(), self.raw.tensor_type)
        except NotImplementedError as error:
            raise ArtifactError(
                f"{self.name} is stored as {self.kind}, which the package {PACKAGE} cannot "
                "dequantize: use a file of another type of the same model, such as Q8_0."
            ) from error

    def values(self, rows: tuple[int, int] | None = None) -> Tensor:
        """The dequantized values, float32, in memory of their own.

        rows  first and last + 1 of those that are read; None: all.
        """
        return self._decoded(self.raw.data if rows is None else self.raw.data[slice(*rows)])

    def values_of(self, stored: Tensor) -> Tensor:
        """The dequantized values of rows that were read otherwise, uint8 [rows, bytes of a row]."""
        return self._decoded(stored.numpy().view(self.raw.data.dtype))

    def _decoded(self, stored: Any) -> Tensor:
        from gguf.quants import dequantize

        self.require_readable()
        quick = dequantized(self.kind, stored, self.shape[-1])
        if quick is not None:
            return quick.reshape(-1, *self.shape[1:])
        floats = self.kind in _PLAIN
        values = stored if floats else dequantize(stored, self.raw.tensor_type)
        return torch.from_numpy(values.astype("float32", copy=floats)).reshape(-1, *self.shape[1:])


@dataclass(frozen=True)
class Kind:
    """Number of tensors of one type, of their weights, and their bytes in the file."""

    tensors: int
    weights: int
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales included."""
        return 8 * self.bytes / self.weights


@dataclass(frozen=True)
class GgufFile:
    """The content of a GGUF file; tensors by their names in the file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def required(self, key: str) -> Any:
        """A value of the metadata; ArtifactError if it is missing."""
        if key not in self.metadata:
            raise ArtifactError(
                f"{self.path} has no {key} in its metadata, so it is not a complete model: "
                "download it again, or use a file that llama.cpp's converter wrote."
            )
        return self.metadata[key]

    def number(self, key: str, default: float | None = None) -> int:
        """A whole number above 0 of the metadata, or the default; ArtifactError.

        A list with one number for every block is taken if all are equal.
        """
        value = self._one(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArtifactError(
                f"{self.path} has {key}={str(value)[:40]}, which must be one whole number above 0: "
                "use another file of the model."
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number, 0 or more, of the metadata, or the default; ArtifactError.

        It is the shortest decimal that is this float32, so that 1e-5 stays 1e-5.
        """
        value = self._one(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < math.inf
        ):
            raise ArtifactError(
                f"{self.path} has {key}={str(value)[:40]}, which must be one number, 0 or more: "
                "use another file of the model."
            )
        return float(f"{value:.7g}")

    def _one(self, key: str, default: float | None) -> Any:
        value = self.required(key) if default is None else self.metadata.get(key, default)
        if isinstance(value, list) and value:
            if any(each != value[0] for each in value):
                raise ArtifactError(
                    f"{self.path} has {key}={str(value)[:40]}, another number for every block, "
                    "which is not read from GGUF: use the Hugging Face folder of the model."
                )
            return value[0]
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; ArtifactError if the file has none of this name."""
        if name not in self.tensors:
            raise ArtifactError(
                f"{self.path} has no tensor {name}, so it is another variant than is read, or "
                "damaged: use the Hugging Face folder of the model."
            )
        return self.tensors[name].shape

    def vector(self, name: str, length: int) -> Tensor:
        """The values of a tensor of this length, float64; ArtifactError."""
        if self.shape(name) != (length,):
            raise ArtifactError(
                f"{self.path} has {name} of shape {list(self.shape(name))}, and its metadata says "
                f"[{length}]: it is damaged or was changed; download it again."
            )
        return self.tensors[name].values().double()

    def weights_by_kind(self) -> dict[str, int]:
        """Number of weights by their type in the file, most first."""
        found: dict[str, int] = {}
        for tensor in self.tensors.values():
            found[tensor.kind] = found.get(tensor.kind, 0) + torch.Size(tensor.shape).numel()
        return dict(sorted(found.items(), key=lambda each: -each[1]))

    def kinds(self) -> dict[str, Kind]:
        """What the tensors of every type are together, most weights first."""
        found = {}
        for kind, weights in self.weights_by_kind().items():
            of_kind = [each for each in self.tensors.values() if each.kind == kind]
            found[kind] = Kind(len(of_kind), weights, sum(each.nbytes for each in of_kind))
        return found

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors in the file."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of all tensors."""
        return 8 * self.tensor_bytes / sum(self.weights_by_kind().values())


def read_gguf(path: Path) -> GgufFile:
    """Parse a file; ArtifactError if it is none, is damaged, or the package is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ArtifactError(
            f"{path} is a GGUF file, and the package {PACKAGE} that reads it is not installed: "
            f"{INSTALL}."
        )
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ArtifactError(
                f"{path} is not a GGUF file (it does not begin with GGUF): name another file."
            )
    try:
        reader = _reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {each.name: _tensor(each) for each in reader.tensors}
    except Exception as error:  # numpy's, for offsets beyond the end
        said = " ".join(str(error).split())[:160]
        kind = "" if isinstance(error, _Damaged) else f"{type(error).__name__}: "
        raise ArtifactError(
            f"{path} cannot be read as GGUF ({kind}{said}): it was cut short, is damaged or newer "
            f"than the package {PACKAGE}; download it again, or update the package."
        ) from error
    if reader.byte_order != "I":
        raise ArtifactError(
            f"{path} was written for big-endian machines, and the package {PACKAGE} does not turn "
            "the bytes of packed tensors: use the file for this machine."
        )
    if not tensors:
        raise ArtifactError(f"{path} has no tensors (a vocabulary alone): name another file.")
    return GgufFile(path, metadata, tensors)


class _Damaged(ValueError):
    """A tensor that cannot be in the file as its header says."""


def _reader(path: Path) -> Any:
    """The package's reader, which would not say the name of a damaged tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

    known = {kind.value: kind for kind in GGMLQuantizationType}

    class Reader(GGUFReader):  # type: ignore[misc, unused-ignore]
        def _get(self, offset: int, *rest: Any, **options: Any) -> Any:
            mapped: Any = self.data
            if type(mapped).__base__ is not object:  # numpy.memmap, whose slices cost more
                self.data = mapped.view(type(mapped).__base__)
            return super()._get(offset, *rest, **options)

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            for field in fields:
                dims, number, offset = field.parts[3], int(field.parts[4][0]), field.parts[5]
                if number not in known:
                    raise _Damaged(f"{field.name} has the unknown type {number}")
                kind = known[number]
                block, size = GGML_QUANT_SIZES[kind]
                count = math.prod(int(each) for each in dims)
                if not count or int(dims[0]) % block:
                    raise _Damaged(
                        f"{field.name} has the sizes {dims.tolist()}, and {kind.name} needs a "
                        f"multiple of {block} first"
                    )
                end = start_offs + int(offset[0]) + count // block * size
                if end > len(self.data):
                    raise _Damaged(
                        f"{field.name} ends at byte {end:,} and the file at {len(self.data):,}"
                    )
            super()._build_tensors(start_offs, fields)

    return Reader(path)


def _tensor(raw: Any) -> StoredTensor:
    shape = tuple(int(size) for size in reversed(raw.shape))
    return StoredTensor(raw.name, shape, raw.tensor_type.name, int(raw.n_bytes), raw)
