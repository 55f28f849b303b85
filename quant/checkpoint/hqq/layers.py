"""Read and check the tensors of one layer that HQQ quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quant.checkpoint.formats.base import (
    CheckpointFormat,
    check_scales,
    dtype_name,
    require_tensors,
)
from quant.checkpoint.hqq.packing import PACKINGS, Packing, unpack_rows
from quant.errors import ArtifactError
from quant.scheme import SCALE_DTYPES
from quant.weight import QuantizedWeight

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Tensors

REQUIRED = ("W_q", "scale", "zero", "shape", "nbits", "group_size", "axis", "packing")
LONGEST = 32  # letters of a text
INPUTS, OUTPUTS = 1, 0  # values of `axis`: the dimension along which groups run


@dataclass(frozen=True)
class Settings:
    """How the configuration says that every layer was quantized.

    nbits       bits as HQQ names them: 8, 4, 1.58, ...
    packing     name of the packing of nbits.
    group_size  weights of a group; None for all of a row (or, along the outputs, of a column).
    axis        INPUTS or OUTPUTS.
    """

    nbits: float
    packing: str
    group_size: int | None
    axis: int


def read(
    tensors: Tensors, parsed: CheckpointFormat, settings: Settings, layer: str
) -> QuantizedWeight:
    """Read one layer; ArtifactError names a tensor that is missing or does not fit.

    Groups along the inputs run on from row to row, as do groups of adjacent columns here if they
    divide the rows; otherwise a group is the largest number of columns that never straddles two of
    HQQ's. Of groups along the outputs, adjacent columns never share one: every weight has scale and
    zero-point of its own here.
    """
    _refuse_quantized_grids(tensors, layer)
    require_tensors(tensors, REQUIRED, layer)
    outputs, inputs = _shape(tensors["shape"], f"{layer}.shape")
    size = settings.group_size or (inputs if settings.axis == INPUTS else outputs)
    _check_settings(tensors, settings, size, layer)
    groups, rest = divmod(outputs * inputs, size)
    if rest:
        raise ArtifactError(
            f"{layer}.group_size={size} does not divide the {outputs * inputs} weights of "
            f"{layer}.shape={[outputs, inputs]}: one of the two is damaged; download it again."
        )
    along_inputs = settings.axis == INPUTS
    scale, zero = _grid(tensors, parsed, (groups, 1) if along_inputs else (1, groups), layer)
    codes = _codes(tensors, settings, (groups, size) if along_inputs else (size, groups), layer)
    scheme = parsed.scheme(scale.dtype)
    if int(codes.max()) > scheme.max_code:
        raise ArtifactError(
            f"{layer}.W_q holds the code {int(codes.max())}, but nbits={settings.nbits:g} has "
            f"codes up to {scheme.max_code}: the file is damaged; download it again."
        )
    together = math.gcd(inputs, size) if along_inputs else 1
    first = torch.arange(0, outputs * inputs, together)  # weight of every group, through the rows
    of_group = first // size if along_inputs else first % groups
    whole = settings.group_size is None and together == inputs
    return QuantizedWeight(
        codes=codes.reshape(outputs, inputs),
        scale=scale[of_group].reshape(outputs, inputs // together),
        zero=zero[of_group].reshape(outputs, inputs // together),
        scheme=replace(scheme, group_size=None if whole else together),
    )


def _refuse_quantized_grids(tensors: Tensors, layer: str) -> None:
    for part, flag in (("scale", "quant_scale"), ("zero", "quant_zero")):
        flagged = flag in tensors and _number(tensors[flag], f"{layer}.{flag}") != 0
        held = next((each for each in (f"{part}_q", "zero_scale") if each in tensors), flag)
        if flagged or held != flag:
            raise ArtifactError(
                f"{layer}.{held} says that the {part} is quantized or kept beside the model "
                "(quant_scale, quant_zero, offload_meta), which early versions of HQQ did: "
                "quantize again with hqq 0.2 or later, without these options."
            )


def _check_settings(tensors: Tensors, settings: Settings, size: int, layer: str) -> None:
    """Raise ArtifactError where the layer's own settings are not those of the configuration."""
    scale = dtype_name(tensors["scale"].dtype)
    if scale not in SCALE_DTYPES:
        raise ArtifactError(
            f"{layer}.scale is {tensors['scale'].dtype}; expected one of {', '.join(SCALE_DTYPES)}."
        )
    word = dtype_name(PACKINGS[settings.packing].word)
    numbers = ("nbits", "group_size", "axis", "channel_wise")
    expected = {
        "nbits": f"{settings.nbits:g}",
        "group_size": str(size),
        "axis": str(settings.axis),
        "channel_wise": "1",
        "packing": settings.packing,
        "compute_dtype": f"torch.{scale}",
        "unpack_view_dtype": f"torch.{word}",
    }
    because = {"compute_dtype": f"{layer}.scale is", "unpack_view_dtype": "the packing has"}
    for part in (part for part in expected if part in tensors):
        name, tensor = f"{layer}.{part}", tensors[part]
        found = f"{_number(tensor, name):.10g}" if part in numbers else _text(tensor, name)
        if found != expected[part]:
            other = f"{because.get(part, 'the quantization_config says')} {expected[part]}"
            raise ArtifactError(
                f"{name} says {found}, but {other}: one of the two is damaged, or the checkpoint "
                "has several schemes, which are not read; make one with a single scheme."
            )


def _grid(
    tensors: Tensors, parsed: CheckpointFormat, shape: tuple[int, int], layer: str
) -> tuple[Tensor, Tensor]:
    """Return scale and zero-point of every group, in their stored type."""
    scale, zero = tensors["scale"], tensors["zero"]
    for part, tensor in (("scale", scale), ("zero", zero)):
        if tuple(tensor.shape) != shape or tensor.dtype != scale.dtype:
            raise ArtifactError(
                f"{layer}.{part} is {tensor.dtype} {list(tensor.shape)}; shape, group_size and "
                f"axis make it {scale.dtype} {list(shape)}."
            )
    check_scales(scale, parsed, f"{layer}.scale")
    if not bool(torch.isfinite(zero).all()):
        raise ArtifactError(f"{layer}.zero has NaN or infinite values; quantize again.")
    return scale.flatten(), zero.flatten()


def _codes(tensors: Tensors, settings: Settings, shape: tuple[int, int], layer: str) -> Tensor:
    """Return the codes as uint8 of `shape`, the matrix that HQQ packed."""
    stored, packing = tensors["W_q"], PACKINGS[settings.packing]
    rows, columns = shape
    viewed = "view_as_float" in tensors and _number(
        tensors["view_as_float"], f"{layer}.view_as_float"
    )
    dtype = tensors["scale"].dtype if viewed else packing.word
    expected = (packing.words(rows), columns * packing.word.itemsize // dtype.itemsize)
    whole = _fills_words(packing, rows)
    if stored.dtype != dtype or tuple(stored.shape) != expected or not whole:
        raise ArtifactError(
            f"{layer}.W_q is {stored.dtype} {list(stored.shape)}; {rows} x {columns} codes packed "
            f"as {settings.packing} are {dtype} {list(expected)}"
            + ("." if whole else f", and {packing.codes} must divide the {rows} rows.")
        )
    words = stored.contiguous().view(torch.uint8).view(packing.word)
    return unpack_rows(words, packing, rows)


def _fills_words(packing: Packing, rows: int) -> bool:
    """Whether HQQ can pack these rows: it fills up words of int32 alone."""
    return packing.word == torch.int32 or rows % packing.codes == 0


def _shape(stored: Tensor, name: str) -> tuple[int, int]:
    if stored.dtype != torch.int64 or tuple(stored.shape) != (2,) or bool((stored < 1).any()):
        raise ArtifactError(
            f"{name} is {stored.dtype} {stored.flatten()[:4].tolist()}; expected the two positive "
            "integers outputs and inputs."
        )
    return int(stored[0]), int(stored[1])


def _number(stored: Tensor, name: str) -> float:
    if stored.numel() != 1:
        raise ArtifactError(
            f"{name} is {stored.dtype} {list(stored.shape)}; expected a single number."
        )
    return round(float(stored), 2)  # 1.58 is stored in float32


def _text(stored: Tensor, name: str) -> str:
    if stored.dtype != torch.uint8 or stored.dim() != 1 or stored.numel() > LONGEST:
        raise ArtifactError(
            f"{name} is {stored.dtype} {list(stored.shape)}; expected a text as a vector of uint8."
        )
    return bytes(stored.tolist()).decode("latin-1")
