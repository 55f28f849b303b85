"""KeptWeights: quantized weights of finished blocks, packed, in memory or in a file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from cuda_ext.codes import pack_rows, unpack_rows
from quant.memory.heaps import own_copy
from quant.scheme import Scheme
from quant.weight import AnyWeight, QuantizedWeight


class _Place(Protocol):
    """Something that holds a tensor and gives it back bit for bit."""

    def get(self) -> Tensor: ...


@dataclass(frozen=True)
class _InMemory:
    tensor: Tensor

    def get(self) -> Tensor:
        return self.tensor


@dataclass(frozen=True)
class _InFile:
    file: BinaryIO
    offset: int
    shape: torch.Size
    dtype: torch.dtype

    def get(self) -> Tensor:
        self.file.seek(self.offset)
        data = bytearray(self.file.read(math.prod(self.shape) * self.dtype.itemsize))
        return torch.frombuffer(data, dtype=self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Packed:
    """A weight whose codes are words int32 of their own width; `inputs` codes a row."""

    words: _Place
    inputs: int
    scheme: Scheme
    grid: Mapping[str, _Place]
    group_index: Tensor | None

    def weight(self) -> QuantizedWeight:
        codes = unpack_rows(self.words.get(), self.scheme.bits, self.inputs)
        grid = {name: part.get() for name, part in self.grid.items()}
        return QuantizedWeight(codes, self.scheme, self.group_index, grid)


class KeptWeights(Mapping[str, AnyWeight]):
    """Quantized weights by full module name. Those that are packed are unpacked at every access.

    A code takes a byte while it is worked on: without packing, the results of a 4-bit run would
    need twice the memory of the artifact. folder is where a file without a name holds those that
    are packed, until these weights are freed; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._held: dict[str, AnyWeight | _Packed] = {}
        self._file: BinaryIO | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

    def add(self, weights: Mapping[str, AnyWeight]) -> None:
        self._held.update(weights)

    def pack(self, names: Iterable[str]) -> None:
        """Pack the codes of these weights; factored ones have none, and stay as they are."""
        for name in names:
            held = self._held[name]
            if isinstance(held, QuantizedWeight):
                words = self._put(pack_rows(held.codes, held.scheme.bits))
                grid = {key: self._put(part) for key, part in held.grid.items()}
                inputs, index = held.shape[1], held.group_index
                self._held[name] = _Packed(words, inputs, held.scheme, grid, index)

    def __getitem__(self, name: str) -> AnyWeight:
        held = self._held[name]
        return held.weight() if isinstance(held, _Packed) else held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def _put(self, tensor: Tensor) -> _Place:
        if self._file is None:
            # In pages of its own, so that the heap has no holes when what made it is freed.
            return _InMemory(own_copy(tensor))
        offset = self._file.seek(0, 2)
        # Plain writes: pages of a mapped file would count as memory of the process.
        view = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        while len(view):  # one write takes at most 2 GiB
            view = view[self._file.write(view) :]
        return _InFile(self._file, offset, tensor.shape, tensor.dtype)
