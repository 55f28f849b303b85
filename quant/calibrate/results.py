"""KeptWeights: quantized weights in memory, their codes packed as the scheme stores them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from cuda_ext.layout import pack_codes, unpack_codes
from quant.memory.heaps import own_copy
from quant.scheme import Scheme
from quant.weight import QuantizedWeight


@dataclass(frozen=True)
class _Packed:
    """A weight whose codes are words int32 of their own width; `inputs` codes a row."""

    words: Tensor
    inputs: int
    scheme: Scheme
    grid: Mapping[str, Tensor]
    group_index: Tensor | None

    @classmethod
    def of(cls, weight: QuantizedWeight) -> _Packed:
        # In pages of its own, so that the heap has no holes when what made it is freed.
        words = own_copy(pack_codes(weight.codes, weight.scheme.bits))
        grid = {name: own_copy(part) for name, part in weight.grid.items()}
        return cls(words, weight.shape[1], weight.scheme, grid, weight.group_index)

    def weight(self) -> QuantizedWeight:
        codes = unpack_codes(self.words, self.scheme.bits, self.inputs)
        return QuantizedWeight(codes, self.scheme, self.group_index, self.grid)


class KeptWeights(Mapping[str, QuantizedWeight]):
    """Quantized weights by full module name. Those that are packed are unpacked at every access.

    A code takes a byte while it is worked on: without packing, the results of a 4-bit run would
    need twice the memory of the artifact.
    """

    def __init__(self) -> None:
        self._held: dict[str, QuantizedWeight | _Packed] = {}

    def add(self, weights: Mapping[str, QuantizedWeight]) -> None:
        self._held.update(weights)

    def pack(self, names: Iterable[str]) -> None:
        """Pack the codes of these weights."""
        for name in names:
            held = self._held[name]
            if isinstance(held, QuantizedWeight):
                self._held[name] = _Packed.of(held)

    def __getitem__(self, name: str) -> QuantizedWeight:
        held = self._held[name]
        return held.weight() if isinstance(held, _Packed) else held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
