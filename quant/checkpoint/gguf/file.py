"""Read a GGUF file: its metadata, and its tensors dequantized one by one.

The package `gguf`, of the authors of the format, parses the file and dequantizes its types. It is
imported only when a file is read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.errors import ArtifactError

PACKAGE = "gguf"
INSTALL = 'pip install "bitsweep[gguf]"'
SUFFIX = ".gguf"
_MAGIC = b"GGUF"


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

    def values(self) -> Tensor:
        """The dequantized values, float32, in memory of their own; ArtifactError."""
        from gguf.quants import dequantize

        try:
            values = dequantize(self.raw.data, self.raw.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ArtifactError(
                f"{self.name} is stored as {self.kind}, which the package {PACKAGE} cannot "
                "dequantize: use a file of another type of the same model, such as Q8_0."
            ) from error
        return torch.from_numpy(values.astype("float32")).reshape(self.shape)


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

    def number(self, key: str) -> int:
        """A whole number above 0 of the metadata; ArtifactError."""
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArtifactError(
                f"{self.path} has {key}={str(value)[:40]}, which must be one whole number above 0: "
                "use another file of the model."
            )
        return value

    def weights_by_kind(self) -> dict[str, int]:
        """Number of weights by their type in the file, most first."""
        found: dict[str, int] = {}
        for tensor in self.tensors.values():
            found[tensor.kind] = found.get(tensor.kind, 0) + torch.Size(tensor.shape).numel()
        return dict(sorted(found.items(), key=lambda each: -each[1]))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of all tensors."""
        bits = 8 * sum(tensor.nbytes for tensor in self.tensors.values())
        return bits / sum(self.weights_by_kind().values())


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
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {each.name: _tensor(each) for each in reader.tensors}
    except Exception as error:  # numpy's, for offsets beyond the end
        said = " ".join(str(error).split())[:120]
        raise ArtifactError(
            f"{path} cannot be read as GGUF ({type(error).__name__}: {said}): it was cut short or "
            "is damaged; download it again."
        ) from error
    if not tensors:
        raise ArtifactError(f"{path} has no tensors (a vocabulary alone): name another file.")
    return GgufFile(path, metadata, tensors)


def _tensor(raw: Any) -> StoredTensor:
    shape = tuple(int(size) for size in reversed(raw.shape))
    return StoredTensor(raw.name, shape, raw.tensor_type.name, int(raw.n_bytes), raw)
