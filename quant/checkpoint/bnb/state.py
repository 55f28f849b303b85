"""Parse quant_state, the JSON beside every 4-bit weight of bitsandbytes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quant.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "float16", "bfloat16")
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # those that bitsandbytes has
KEY = "weight.quant_state.bitsandbytes__"
LONGEST = 1 << 16  # bytes; bitsandbytes writes about 100


@dataclass(frozen=True)
class Nested:
    """How absmax is stored in 8 bits (double quantization).

    blocksize  absmax values that share a scale.
    dtype      type in which bitsandbytes computes them.
    offset     added to all of them.
    """

    blocksize: int
    dtype: str
    offset: float


@dataclass(frozen=True)
class QuantState:
    """What a layer says of itself.

    kind       "nf4" or "fp4".
    blocksize  weights that share an absmax, counted through the rows.
    shape      (outputs, inputs).
    """

    kind: str
    blocksize: int
    shape: tuple[int, int]
    nested: Nested | None = None


def parse(stored: Tensor, layer: str, kind: str) -> QuantState:
    """Parse the tensor of a layer of `kind`; ArtifactError names it and the field."""
    name = f"{layer}.{KEY}{kind}"
    said = _json(stored, name)
    if said.get("quant_type") != kind:
        raise ArtifactError(
            f"{name} says quant_type={said.get('quant_type')!r}, but its name says {kind}: the "
            "file is damaged; download it again."
        )
    shape = said.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(_count(each) for each in shape):
        raise ArtifactError(
            f"{name} says shape={shape!r}; expected the two positive integers outputs and inputs."
        )
    if said.get("dtype") not in DTYPES:
        raise ArtifactError(
            f"{name} says dtype={said.get('dtype')!r}; expected one of {', '.join(DTYPES)}."
        )
    return QuantState(
        kind, _block(said, "blocksize", name), (shape[0], shape[1]), _nested(said, name)
    )


def _json(stored: Tensor, name: str) -> dict[str, Any]:
    import torch

    if stored.dtype != torch.uint8 or stored.dim() != 1 or stored.numel() > LONGEST:
        raise ArtifactError(
            f"{name} is {stored.dtype} {list(stored.shape)}; expected JSON as a vector of uint8."
        )
    try:
        said = json.loads(bytes(stored.tolist()))
    except ValueError as error:  # of the text or of its encoding
        raise ArtifactError(
            f"{name} holds no JSON ({error}): it was cut short or is damaged; download the file "
            "again."
        ) from error
    if not isinstance(said, dict):
        raise ArtifactError(f"{name} holds {type(said).__name__}, not an object of JSON.")
    return said


def _nested(said: dict[str, Any], name: str) -> Nested | None:
    if not any(key.startswith("nested_") for key in said):
        return None
    offset, dtype = said.get("nested_offset"), said.get("nested_dtype")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise ArtifactError(f"{name} says nested_offset={offset!r}; expected a finite number.")
    if dtype not in DTYPES:
        raise ArtifactError(
            f"{name} says nested_dtype={dtype!r}; expected one of {', '.join(DTYPES)}."
        )
    return Nested(_block(said, "nested_blocksize", name), dtype, float(offset))


def _block(said: dict[str, Any], key: str, name: str) -> int:
    size = said.get(key)
    if not _count(size) or size not in BLOCKS:
        raise ArtifactError(
            f"{name} says {key}={size!r}; expected one of {', '.join(map(str, BLOCKS))}."
        )
    return int(size)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
