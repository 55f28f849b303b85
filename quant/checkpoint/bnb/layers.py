"""Read and check the tensors of one layer that bitsandbytes quantized."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quant.checkpoint.bnb import int8
from quant.checkpoint.bnb.state import KEY, Nested, QuantState, parse
from quant.checkpoint.formats.base import CheckpointFormat, dtype_name, require_tensors
from quant.errors import ArtifactError
from quant.levels.numbers import table
from quant.weight import QuantizedWeight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quant.checkpoint.formats.base import Tensors

STORAGES = ("uint8", "int8", "float16", "bfloat16", "float32", "float64")
# A stored table may differ by this from the levels: bitsandbytes' own kernels do not read it.
TABLE_ERROR = 1e-6
NESTED_CODES = 256
ROW_MAJOR = 0  # weight_format; the others are layouts of early GPU kernels


def read_4bit(
    tensors: Tensors,
    parsed: CheckpointFormat,
    layer: str,
    kind: str,
    levels: Sequence[float],
    ranks: Sequence[int],
) -> QuantizedWeight:
    """Read one layer of `kind`; ArtifactError names a tensor that is missing or does not fit.

    Blocks are counted through the rows. Where they do not divide a row, a group is the largest
    number of columns that never straddles a block, and several groups have the scale of theirs.
    """
    key = f"{KEY}{kind}"
    require_tensors(tensors, (key, "weight", "weight.absmax", "weight.quant_map"), layer)
    state = parse(tensors[key], layer, kind)
    if parsed.group_size is not None and state.blocksize != parsed.group_size:
        raise ArtifactError(
            f"{layer}.{key} says blocksize={state.blocksize}, but other layers have "
            f"{parsed.group_size}: checkpoints of several schemes are not read; make one with a "
            "single scheme."
        )
    outputs, inputs = state.shape
    _check_table(tensors["weight.quant_map"], levels, ranks, f"{layer}.weight.quant_map", kind)
    absmax = _absmax(tensors, state, layer)
    size = math.gcd(inputs, state.blocksize)
    first = torch.arange(0, outputs * inputs, size)  # column of every group, through the rows
    return QuantizedWeight(
        codes=_codes(tensors["weight"], state, ranks, layer).reshape(outputs, inputs),
        scale=absmax[first // state.blocksize].reshape(outputs, inputs // size),
        scheme=replace(parsed.scheme(torch.float32), group_size=size),
    )


def read_8bit(tensors: Tensors, parsed: CheckpointFormat, layer: str) -> QuantizedWeight:
    """Read one layer of LLM.int8; ArtifactError names a tensor that is missing or does not fit."""
    require_tensors(tensors, ("weight", "SCB"), layer)
    weight, scale = tensors["weight"], tensors["SCB"]
    if weight.dtype != torch.int8 or weight.dim() != 2:
        raise ArtifactError(
            f"{layer}.weight is {weight.dtype} {list(weight.shape)}; expected an int8 matrix "
            "[outputs, inputs] beside its SCB."
        )
    rows = f"the {len(weight)} rows of {layer}.weight"
    _check(scale, (len(weight),), torch.float32, f"{layer}.SCB", rows)
    _check_finite(scale, f"{layer}.SCB")
    if bool((scale < 0).any()):
        raise ArtifactError(
            f"{layer}.SCB holds {float(scale.min()):.4g}, but it is the largest magnitude of a row:"
            " the file is damaged; download it again."
        )
    layout = tensors.get("weight_format")
    if layout is not None and (layout.numel() != 1 or int(layout) != ROW_MAJOR):
        raise ArtifactError(
            f"{layer}.weight_format={layout.tolist()} is a layout of early GPU kernels; only 0 "
            "(row by row) can be read: load and save it with bitsandbytes 0.45 or later."
        )
    return QuantizedWeight(
        codes=(weight.short() + int8.MIDDLE).to(torch.uint8),
        scale=scale[:, None].contiguous(),
        scheme=parsed.scheme(torch.float32),
    )


def _codes(stored: Tensor, state: QuantState, ranks: Sequence[int], layer: str) -> Tensor:
    """Return the ranks as uint8 [outputs * inputs]; the first of two codes is the high nibble."""
    count = math.prod(state.shape)
    name = f"{layer}.weight"
    expected = -(-count // 2)
    column = stored.dim() == 2 and 1 in stored.shape
    if not column or dtype_name(stored.dtype) not in STORAGES or stored.nbytes != expected:
        raise ArtifactError(
            f"{name} is {stored.dtype} {list(stored.shape)}, which is {stored.nbytes} bytes; its "
            f"quant_state says shape={list(state.shape)}, which is a column of {expected} bytes."
        )
    packed = stored.contiguous().view(-1).view(torch.uint8)
    if list(ranks) != sorted(ranks):  # both nibbles of a byte at once
        of_byte = [high << 4 | low for high in ranks for low in ranks]
        packed = torch.tensor(of_byte, dtype=torch.uint8).index_select(0, packed.int())
    codes = torch.empty(2 * len(packed), dtype=torch.uint8)
    codes[::2], codes[1::2] = packed >> 4, packed & 15
    return codes[:count]


def _absmax(tensors: Tensors, state: QuantState, layer: str) -> Tensor:
    """Return the largest magnitude of every block, as float32."""
    name = f"{layer}.weight.absmax"
    stored = tensors["weight.absmax"]
    blocks = -(-math.prod(state.shape) // state.blocksize)
    if stored.dim() == 2 and stored.is_floating_point() and stored.numel() == blocks:
        raise ArtifactError(
            f"{name} is {stored.dtype} {list(stored.shape)}, transposed for a CPU kernel: "
            "bitsandbytes saved the layer after it had run on a CPU with AVX512-BF16; save the "
            "model again before anything runs through it."
        )
    why = f"shape={list(state.shape)} and blocksize={state.blocksize}"
    if state.nested is not None:
        _check(stored, (blocks,), torch.uint8, name, why)
        absmax = _nested_absmax(tensors, state.nested, blocks, layer)
    else:
        nested = [part for part in tensors if part.startswith("weight.nested_")]
        if nested:
            raise ArtifactError(
                f"{layer}.{nested[0]} is stored, but its quant_state names no nested_blocksize: "
                "one of the two is damaged; download the file again."
            )
        _check(stored, (blocks,), torch.float32, name, why)
        absmax = stored
    _check_finite(absmax, name)
    return absmax


def _nested_absmax(tensors: Tensors, nested: Nested, blocks: int, layer: str) -> Tensor:
    """Return absmax of a doubly quantized layer, by the operations of bitsandbytes."""
    require_tensors(tensors, ("weight.nested_absmax", "weight.nested_quant_map"), layer)
    scale, entries = tensors["weight.nested_absmax"], tensors["weight.nested_quant_map"]
    count = -(-blocks // nested.blocksize)
    why = f"{blocks} blocks and nested_blocksize={nested.blocksize}"
    for part, tensor, length in (
        ("nested_absmax", scale, count),
        ("nested_quant_map", entries, 256),
    ):
        _check(tensor, (length,), torch.float32, f"{layer}.weight.{part}", why)
        _check_finite(tensor, f"{layer}.weight.{part}")
    of_block = scale.repeat_interleave(nested.blocksize)[:blocks]
    absmax = (entries[tensors["weight.absmax"].int()] * of_block).to(getattr(torch, nested.dtype))
    return absmax.add_(torch.tensor(nested.offset)).float()


def _check_table(
    stored: Tensor, levels: Sequence[float], ranks: Sequence[int], name: str, kind: str
) -> None:
    _check(stored, (len(ranks),), torch.float32, name, "4 bits")
    expected = table.in_float32(levels)[list(ranks)]
    wrong = (~((stored - expected).abs() <= TABLE_ERROR)).nonzero()  # NaN is wrong too
    if len(wrong):
        at = int(wrong[0])
        raise ArtifactError(
            f"{name}[{at}] is {float(stored[at]):.7g}, but {kind} has {float(expected[at]):.7g} "
            "there: another table is not read; the file is damaged or of an unknown type."
        )


def _check(
    tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, name: str, because: str
) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ArtifactError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}; {because} make it {dtype} "
            f"{list(shape)}."
        )


def _check_finite(tensor: Tensor, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ArtifactError(f"{name} has NaN or infinite values; quantize again.")
