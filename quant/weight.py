"""QuantizedWeight: codes and grid of one layer, passed between solver, packer and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.scheme import Scheme

MOST_AT_ONCE = 1 << 24  # codebook numbers expanded at a time, 64 MiB in float32


@dataclass(frozen=True, init=False)
class QuantizedWeight:
    """Integer codes and the grid that maps them to values.

    codes        uint8 [out, in], 0 .. scheme.max_code.
    scheme       defines the tensors of the grid (quant.levels).
    grid         tensors by name, as the levels declare them: [out, groups] or, if groups share an
                 entry, [out, super-blocks] or [out, 1]; with one more dimension if an entry has
                 several numbers (a codebook: [out, 1, 2^bits]). Integers are uint8; other numbers
                 have the declared type or scheme.scale_dtype. Uniform levels have scale (finite and
                 > 0) and zero (0 .. scheme.max_code). Ternary levels have scale, the value of code
                 2 (row maximum, may be 0), and negative_scale, the magnitude of code 0 (-row
                 minimum).
    group_index  int32 [in], the group of each column; None if column j is in group j // group_size.
                 Only act-order without static groups sets it.
    """

    codes: Tensor
    scheme: Scheme
    grid: Mapping[str, Tensor]
    group_index: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scheme: Scheme,
        group_index: Tensor | None = None,
        grid: Mapping[str, Tensor] | None = None,
        **tensors: Tensor | None,
    ) -> None:
        """Create a weight from grid tensors, given as one mapping or by name (None: not present).

        Raises ValueError unless they are exactly the tensors of the scheme's levels, and for the
        scheme of a model (with a head).
        """
        named = {name: part for name, part in tensors.items() if part is not None}
        found = {**(grid or {}), **named}
        if scheme.head is not None:
            raise ValueError(
                f"{scheme.name} is the scheme of a model; one weight has scheme.without_head or "
                "scheme.head."
            )
        expected = [tensor.name for tensor in scheme.kind.tensors]
        if found.keys() != set(expected):
            raise ValueError(
                f"{scheme.name} has a grid of {', '.join(expected)}, not of "
                f"{', '.join(found) or 'nothing'}; pass exactly these tensors."
            )
        for field, value in (
            ("codes", codes),
            ("scheme", scheme),
            ("grid", {name: found[name] for name in expected}),
            ("group_index", group_index),
        ):
            object.__setattr__(self, field, value)

    @property
    def scale(self) -> Tensor:
        return self.grid["scale"]

    @property
    def zero(self) -> Tensor | None:
        return self.grid.get("zero")

    @property
    def negative_scale(self) -> Tensor | None:
        return self.grid.get("negative_scale")

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.codes.shape[0], self.codes.shape[1]

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """Return the same weight with all tensors on `device`."""
        index = None if self.group_index is None else self.group_index.to(device)
        grid = {name: part.to(device) for name, part in self.grid.items()}
        return QuantizedWeight(self.codes.to(device), self.scheme, index, grid)

    def column_groups(self) -> Tensor:
        """Return int64 [in]: the group of every column."""
        inputs = self.codes.shape[1]
        if self.group_index is not None:
            return self.group_index.long()
        size = self.scheme.group_size or inputs
        return torch.arange(inputs, device=self.codes.device) // size

    def _by_column(self, part: Tensor, entries: Tensor) -> Tensor:
        """Return part[:, entries]: the entry of every column."""
        size, rest = divmod(len(entries), part.shape[1])
        if self.group_index is not None or rest or size != self.scheme.group_size:
            return part[:, entries]
        # Groups of adjacent columns are repeated: five times as fast as looking each column up.
        repeated = part[:, :, None].expand(*part.shape[:2], size, *part.shape[2:])
        return repeated.reshape(len(part), len(entries), *part.shape[2:])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] of the codes, computed in float32 and rounded to dtype."""
        kind, groups = self.scheme.kind, self.column_groups()
        entries = {
            each.name: groups if each.span == 1 else groups // (each.span or len(groups))
            for each in kind.tensors
        }
        # A codebook is expanded to one per weight, so only some rows are decoded at a time.
        wide = max(each.count(self.scheme) for each in kind.tensors)
        step = max(1, MOST_AT_ONCE // (wide * len(groups))) if wide > 1 else len(self.codes)
        values = []
        for rows in (slice(at, at + step) for at in range(0, len(self.codes), step)):
            grid = {name: part[rows].float() for name, part in self.grid.items()}
            grid = {
                name: part if part.shape[1] == 1 else self._by_column(part, entries[name])
                for name, part in grid.items()
            }
            values.append(kind.decode(self.codes[rows].float(), grid, self.scheme).to(dtype))
        return values[0] if len(values) == 1 else torch.cat(values)
