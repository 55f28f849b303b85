"""Read a quantized checkpoint beside its base: its layers one at a time, and what it claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.checkpoint.folder import read_json
from quant.checkpoint.layers import quantized_layers, read_weight, stored_bits
from quant.checkpoint.loader import read_format, read_quantization
from quant.checkpoint.names import names_of
from quant.checkpoint.tensors import TensorReader
from quant.errors import ArtifactError
from quant.pruning import PRUNED
from quant.weight import FactoredWeight, QuantizedWeight

# Two tensors count as equal up to the rounding of the coarser of their types, bfloat16 at most.
ROUNDING = 2**-7
LISTED = 3
PRODUCT = "is a product of factors"
AT_ONCE = 1 << 20  # values of two tensors that are compared at a time


SEQUENTIAL = "true-sequential, so the inputs of a layer are those behind the checkpoint's layers"


@dataclass(frozen=True)
class Claim:
    """What the files say of their maker.

    method    "gptq", "rtn", ...: the method that they name; None if they name none.
    producer  the program that wrote them; "" if they name none.
    format    name of the format, for tables.
    types     types of the tensors and their shares of the weights, where a file has several.
    said      what else they say, in words.
    true_sequential  they say that inputs were taken behind the quantized layers of the same block.
    """

    method: str | None
    producer: str
    format: str
    types: str = ""
    said: tuple[str, ...] = ()
    true_sequential: bool = False


@dataclass(frozen=True)
class Loose:
    """The weight of a layer without levels of single weights: factored, or of a type as IQ2_XS.

    values  float32 [out, in]; kind their type or form, bits the stored bits of all of them.
    why     what the kind has in the place of a grid, as the rest of a sentence that begins with it.
    scaled  whether it may be a scaled weight (quant.audit.coordinates). What a low rank leaves of a
            weight looks like one, and no method here scales before it factors.
    """

    values: Tensor
    kind: str
    bits: float
    why: str
    scaled: bool = True


class AuditedCheckpoint:
    """The layers of a quantized checkpoint by the names of its base; a context manager.

    Raises ArtifactError for a folder that is not a quantized checkpoint, for layers of another
    shape than the base's, and for operators in front of layers, which change their inputs.
    """

    def __init__(self, folder: str | Path, base: PreTrainedModel) -> None:
        self.folder, self._base = Path(folder), base
        self._format = read_format(self.folder)
        if self._format.operators:
            layer = min(self._format.operators)
            raise ArtifactError(
                f"{folder}: {layer} has an operator in front of it, so its weight is not in the "
                "coordinates of the base: audit the checkpoint as it was before that transform."
            )
        if PRUNED in read_json(self.folder / "config.json"):
            raise ArtifactError(
                f"{folder}: parts of the model were removed before it was quantized ({PRUNED} in "
                "its config.json), so its layers are not those of the base: audit an artifact of "
                "the whole model."
            )
        # Not mapped: what was read of a mapped file counts as memory until the file is closed.
        self._reader = TensorReader(self.folder, mapped=False)

    def __enter__(self) -> Self:
        self._reader.__enter__()
        try:
            self._reader.rename(names_of(self._base).to_model)
            self._layers = quantized_layers(self._reader, self._format)
            self._require_same_model()
        except BaseException:
            self._reader.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()

    @property
    def claim(self) -> Claim:
        """What the configuration says: Bitsweep's own method, a provider, or else quant_method.

        AutoRound writes files of GPTQ's format and names itself as their provider.
        """
        said = read_quantization(self.folder)
        meta = said.get("meta")
        own = meta.get("method") if isinstance(meta, Mapping) else None
        method: Any = own.get("name") if isinstance(own, Mapping) else None
        method = method or said.get("provider") or said.get("quant_method")
        producer = self._format.producer or str(said.get("provider") or "")
        sequential = any(
            isinstance(part, Mapping) and part.get("true_sequential") is True
            for part in (said, meta, own)
        )
        return Claim(
            str(method).lower() if method else None,
            producer,
            self._format.name,
            said=(SEQUENTIAL,) * sequential,
            true_sequential=sequential,
        )

    def read(self, layer: str) -> QuantizedWeight | Loose | None:
        """Return the quantized weight of a layer, by its full name; None if it is not quantized."""
        if layer not in self._layers:
            return None
        found = read_weight(self._reader, self._format, layer, self._layers[layer])
        if isinstance(found, FactoredWeight):
            return Loose(found.dequantize(), found.form.title, found.bits, PRODUCT, False)
        return found

    def type_of(self, layer: str, weight: QuantizedWeight) -> str:  # noqa: ARG002
        """Return the name of a quantized layer's scheme."""
        return weight.scheme.name

    def stored_bits(self, layer: str, weight: QuantizedWeight) -> float:
        """Return the bits that the files hold of a quantized layer."""
        parts = self._layers[layer]
        return stored_bits(self._reader, self._format, layer, parts, weight.scheme, weight.shape)

    def dense(self, layer: str) -> Tensor:
        """Return the weight of a layer that is not quantized, in float32."""
        name = f"{layer}.weight"
        if name not in self._reader.names:
            raise ArtifactError(
                f"{self.folder}: {layer} is neither quantized nor stored: no tensor {name}."
            )
        return self._reader.read(name).float()

    def differing(self, base: TensorReader) -> Iterator[tuple[str, float]]:
        """Yield the other tensors that differ from the base's, with the share of their values.

        Tensors of the checkpoint that the base does not have are left out (an untied head, say).
        """
        of_base = set(base.names)
        for name in self._reader.names:
            layer, _, part = name.rpartition(".")
            own = (*self._layers[layer], "bias") if layer in self._layers else ()
            if name in of_base and part not in own:
                share = share_differing(self._reader.mapped(name), base.mapped(name))
                if share:
                    yield name, share

    def outside(self, base: TensorReader) -> Iterator[str]:  # noqa: ARG002
        """Yield nothing: what lies outside the blocks is compared value by value."""
        yield from ()

    def _require_same_model(self) -> None:
        modules = dict(self._base.named_modules())
        unknown = [layer for layer in self._layers if layer not in modules]
        if unknown:
            more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
            raise ArtifactError(
                f"{self.folder} has {', '.join(unknown[:LISTED])}{more}, which "
                f"{type(self._base).__name__} of the base does not have: name the model that it "
                "was made from with --base."
            )


def share_differing(one: Tensor, other: Tensor, least: float = 0.0) -> float:
    """Return the share of values in which two tensors differ; 1 for other shapes.

    least  a difference that counts as none, whatever the values.
    """
    if one.shape != other.shape:
        return 1.0
    count = 0
    # In pieces: the differences of embeddings would be several tensors of their size.
    for piece, like in zip(
        one.flatten().split(AT_ONCE), other.flatten().split(AT_ONCE), strict=True
    ):
        first, second = piece.float(), like.float()
        rounding = ROUNDING * torch.maximum(first.abs(), second.abs()) + least
        apart = (first - second).abs() > rounding
        count += int(apart.sum())
    return count / max(1, one.numel())
