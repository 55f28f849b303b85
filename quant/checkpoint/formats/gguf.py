"""GGUF, llama.cpp's file of a whole model, as `export` writes it (quant.checkpoint.gguf.write).

Files are read as models, not as quantized layers (quant.checkpoint.gguf.unpack): their codes are
dequantized, whoever made them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quant.checkpoint.formats.base import StoredLayer, refuse_levels
from quant.checkpoint.one_file import FileFormat, Planned, WholeModel
from quant.head import is_embeddings
from quant.scheme import Scheme

if TYPE_CHECKING:
    from quant.checkpoint.gguf.pack import Packing

_OTHERWISE = "use --format gptq-v2 or compressed-tensors"
_WITHOUT = "quantize again without scheme.embeddings"


def refuses(scheme: Scheme, layer: StoredLayer | None) -> str | None:
    from quant.checkpoint.gguf.pack import packing_of, packings

    reason = refuse_levels(scheme, FORMAT.name)
    if reason is not None:
        return reason
    embeddings = layer is not None and is_embeddings(layer.name)
    otherwise = _WITHOUT if embeddings else _OTHERWISE
    known = packings(scheme)
    kind = "symmetric" if scheme.symmetric else "asymmetric"
    if not known:
        return (
            f"has {kind} codes of {scheme.bits} bits, for whose grid GGUF has no type: {_held()}; "
            f"quantize so, or {otherwise}."
        )
    if scheme.group_size is not None and all(scheme.group_size % each.block for each in known):
        return (
            f"has groups of {scheme.group_size}, and {_or(known)} of GGUF need groups of a "
            f"multiple of {min(each.block for each in known)}, or one a row: quantize so, or "
            f"{otherwise}."
        )
    if layer is None:
        return None
    if layer.module != "Linear" and not embeddings:
        return (
            f"is a {layer.module}, and {FORMAT.name} stores only nn.Linear: use --format gptq-v2."
        )
    if packing_of(scheme, layer.inputs) is None:
        return (
            f"has {layer.inputs} inputs, and {_or(known)} of GGUF have blocks of "
            f"{min(each.block for each in known)} weights in one group: {otherwise}."
        )
    return None


def plan(model: WholeModel) -> Planned:
    from quant.checkpoint.gguf.write import plan as plan_file

    return plan_file(model)


def ours(path: Path) -> bool:
    from quant.checkpoint.gguf.write import is_ours

    return is_ours(path)


def _or(known: list[Packing]) -> str:
    return " and ".join(each.name for each in known)


def _held() -> str:
    """The schemes that GGUF holds, in words."""
    from quant.checkpoint.gguf.pack import PACKINGS

    free = sorted({each.bits for each in PACKINGS if not each.symmetric})
    symmetric = sorted({each.bits for each in PACKINGS})
    return (
        f"it holds {', '.join(map(str, symmetric))} bits symmetric and "
        f"{', '.join(map(str, free))} asymmetric"
    )


FORMAT = FileFormat(
    name="gguf",
    title="GGUF",
    readers="llama.cpp and what is built on it; transformers and Bitsweep, which dequantize it",
    library="gguf",
    suffix=".gguf",
    refuses=refuses,
    plan=plan,
    ours=ours,
)
