"""The weight of one layer, passed between solver, packer and checkpoint: codes, or factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from cuda_ext import codes as packed_codes
from cuda_ext.codes import Words
from quant.budget import Budget
from quant.forms.base import Form
from quant.scheme import Scheme

# Weights (times the numbers of a codebook) decoded at a time: what they need stays in the cache.
MOST_AT_ONCE = 1 << 18


@dataclass(frozen=True, init=False)
class QuantizedWeight:
    """Integer codes and the grid that maps them to values.

    codes        uint8 [out, in], 0 .. scheme.max_code. Readers of files give words in their place,
                 which `dequantize` takes as they are; they are unpacked when codes are asked for.
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
        codes: Tensor | Words,
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
        if scheme != scheme.without_head:
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
            ("_held", codes),
            ("scheme", scheme),
            ("grid", {name: found[name] for name in expected}),
            ("group_index", group_index),
        ):
            object.__setattr__(self, field, value)

    @property  # type: ignore[no-redef]
    def codes(self) -> Tensor:
        held: Tensor | Words = self._held  # type: ignore[attr-defined]
        if isinstance(held, Words):
            held = held.unpack()
            object.__setattr__(self, "_held", held)
        return held

    @property
    def words(self) -> Words | None:
        """The words of the codes, as a file has them; None once the codes were asked for."""
        held: Tensor | Words = self._held  # type: ignore[attr-defined]
        return held if isinstance(held, Words) else None

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
        rows, columns = self._held.shape  # type: ignore[attr-defined]
        return rows, columns

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """Return the same weight with all tensors on `device`."""
        index = None if self.group_index is None else self.group_index.to(device)
        grid = {name: part.to(device) for name, part in self.grid.items()}
        return QuantizedWeight(self.codes.to(device), self.scheme, index, grid)

    def column_groups(self) -> Tensor:
        """Return int64 [in]: the group of every column."""
        if self.group_index is not None:
            return self.group_index.long()
        inputs, words = self.shape[1], self.words
        size = self.scheme.group_size or inputs
        held = self.codes if words is None else words.words
        return torch.arange(inputs, device=held.device) // size

    def entropy(self) -> float:
        """Return the empirical entropy of the codes in bits: -sum of p log2 p, p their shares.

        No code of single weights takes fewer bits on average. Codes that stand for one level in
        every grid (two zeros) count as one.
        """
        counts = torch.bincount(self.codes.flatten(), minlength=self.scheme.max_code + 1).double()
        if self.scheme.kind.alike:
            alike = list(self.scheme.kind.alike)
            counts = torch.cat([counts, counts[alike].sum().view(1)])
            counts[alike] = 0
        return float(torch.special.entr(counts / self.codes.numel()).sum()) / math.log(2)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] of the codes, computed in float32 and rounded to dtype."""
        kind, (outputs, inputs) = self.scheme.kind, self.shape
        if kind.operators and self.zero is not None and packed_codes.compiled(self.scale):
            return self._decoded(self.zero, dtype)
        size = self.scheme.group_size or inputs
        adjacent = self.group_index is None and inputs % size == 0
        groups = (
            torch.arange(inputs // size, device=self.codes.device)
            if adjacent
            else self.column_groups()
        )
        whole = len(groups) if adjacent else 0  # entries of a tensor that need no look-up
        entries = {
            each.name: groups if each.span == 1 else groups // (each.span or len(groups))
            for each in kind.tensors
        }
        # A codebook may be expanded to one per weight.
        wide = max(each.count(self.scheme) for each in kind.tensors)
        step = max(1, MOST_AT_ONCE // (wide * inputs))
        values = torch.empty(outputs, inputs, dtype=dtype, device=self.codes.device)
        for rows in (slice(at, at + step) for at in range(0, outputs, step)):
            codes, result = self.codes[rows], values[rows]
            grid = {name: part[rows].float() for name, part in self.grid.items()}
            grid = {
                name: part if part.shape[1] in (1, whole) else part[:, entries[name]]
                for name, part in grid.items()
            }
            if adjacent:
                # One entry of the grid broadcasts over its whole group.
                codes, result = (each.unflatten(1, (-1, size)) for each in (codes, result))
                grid = {name: part.unsqueeze(2) for name, part in grid.items()}
            result.copy_(kind.decode(codes.float(), grid, self.scheme))
        return values

    def _decoded(self, zero: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what `dequantize` does for uniform levels, by compiled code: the same bits."""
        outputs, inputs = self.shape
        size = self.scheme.group_size or inputs
        index = None if self.group_index is None else self.group_index.int()
        values = torch.empty(outputs, inputs, dtype=dtype)
        if dtype == torch.float32:
            codes = self.words or self.codes
            packed_codes.decode(values, codes, self.scale, zero, size, index)
            return values
        step = max(1, MOST_AT_ONCE // inputs)
        some = torch.empty(min(step, outputs), inputs)
        for rows in (slice(at, at + step) for at in range(0, outputs, step)):
            codes = self.codes[rows]
            found = some[: len(codes)]
            packed_codes.decode(found, codes, self.scale[rows], zero[rows], size, index)
            values[rows] = found
        return values


@dataclass(frozen=True)
class FactoredWeight:
    """A weight [out, in] in a form other than codes on a grid, as a method made it.

    form     how the tensors make the weight (quant.forms).
    tensors  by the names that the form declares, as they are stored.
    scheme   the budget that the method was given; `bits` is what the tensors take.

    Raises ValueError for tensors that cannot be such a weight.
    """

    form: Form
    tensors: Mapping[str, Tensor]
    scheme: Budget

    def __post_init__(self) -> None:
        reason = self.form.check(self.tensors)
        if reason is not None:
            raise ValueError(f"a weight of the form {self.form.name} {reason}")

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.form.shape(self.tensors)

    @property
    def bits(self) -> int:
        """Stored bits of all tensors."""
        return sum(8 * tensor.nbytes for tensor in self.tensors.values())

    def to(self, device: torch.device | str) -> FactoredWeight:
        """Return the same weight with all tensors on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return FactoredWeight(self.form, moved, self.scheme)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in], computed in float32 and rounded once to dtype."""
        return self.form.dense(self.tensors).to(dtype)


# What a method makes of a weight.
AnyWeight: TypeAlias = QuantizedWeight | FactoredWeight
