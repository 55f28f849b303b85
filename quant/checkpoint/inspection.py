"""Inspect a quantized checkpoint from any producer: read and check every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quant.budget import AnyScheme
from quant.checkpoint.folder import verify
from quant.checkpoint.layers import operator_bits, quantized_layers, stored_bits
from quant.checkpoint.loader import load_weights, read_scheme
from quant.checkpoint.operators import summary
from quant.checkpoint.tensors import TensorReader
from quant.checkpoint.writer import scattered
from quant.levels import uniform
from quant.levels.base import Levels
from quant.parts import Part
from quant.weight import AnyWeight, FactoredWeight, QuantizedWeight


@dataclass(frozen=True)
class Inspection:
    """The properties of a quantized checkpoint whose tensors were all read and checked.

    format           name in tables: "GPTQ v2".
    producer         program that wrote it; None if the files name none.
    scheme           that of the layers, with that of the head if it is quantized.
    bits_per_weight  stored bits per quantized weight, including scales, zero-points and operators.
    layers           number of quantized layers.
    weights          number of weights in these layers.
    scattered        number of layers whose groups are not adjacent columns (act-order).
    zero_points      how they are stored, and how that is known.
    mean_offset      mean of code - zero-point, which is near 0 if the zero-points are read
                     correctly.
    zeros_of_0       number of zero-points of 0 and how readers treat them, if the format is
                     ambiguous about them.
    operators        summary of the operators in front of layers; None if there are none.
    mixture          layers by scheme, in words; "" if those in the blocks have one.
    forms            of factored layers, and how many have each, in words; "" if all have codes.
    verified         True if every file matches artifact.json; False if there is no artifact.json.
    """

    folder: Path
    format: str
    producer: str | None
    scheme: AnyScheme
    bits_per_weight: float
    layers: int
    weights: int
    scattered: int
    zero_points: str
    mean_offset: float | None
    zeros_of_0: str | None
    operators: str | None
    mixture: str
    forms: str
    verified: bool


def inspect(folder: str | Path, levels: Sequence[str | Part | Levels] = ()) -> Inspection:
    """Inspect the checkpoint in `folder`, in any format that `load` reads.

    levels are kinds of levels that its layers may use besides the built-in ones. Raises
    ArtifactError for a folder that is not a quantized checkpoint, is incomplete or damaged.
    """
    folder = Path(folder)
    checkpoint, scheme = read_scheme(folder, levels)
    verified = verify(folder)
    layers = load_weights(folder, verify_files=False, levels=levels)
    with TensorReader(folder) as reader:
        kept = operator_bits(reader, checkpoint)
        parts = quantized_layers(reader, checkpoint)
        stored = sum(
            stored_bits(reader, checkpoint, layer, parts[layer], weight.scheme, weight.shape)
            for layer, weight in layers.items()
        )
    count = sum(_size(weight) for weight in layers.values())
    offset, zeros = _zero_points(layers.values())
    said = checkpoint.evidence
    unsure = checkpoint.format.zeros_of_0 if zeros else None
    return Inspection(
        folder=folder,
        format=checkpoint.name,
        producer=checkpoint.producer or None,
        scheme=scheme,
        bits_per_weight=(stored + kept) / count,
        layers=len(layers),
        weights=count,
        scattered=sum(map(scattered, layers.values())),
        zero_points=checkpoint.zero_points + (f" ({said})" if said else ""),
        mean_offset=None if offset is None else offset / count,
        zeros_of_0=f"{zeros}, {unsure}" if unsure else None,
        operators=summary(checkpoint.operators) if kept else None,
        mixture=checkpoint.mixture,
        forms=_forms(layers.values()),
        verified=verified,
    )


def _size(weight: AnyWeight) -> int:
    outputs, inputs = weight.shape
    return outputs * inputs


def _forms(weights: Iterable[AnyWeight]) -> str:
    """Count the forms of factored weights, in words."""
    found = Counter(each.form.title for each in weights if isinstance(each, FactoredWeight))
    return ", ".join(f"{title} in {count} layers" for title, count in found.items())


def _zero_points(weights: Iterable[AnyWeight]) -> tuple[float | None, int]:
    """Return the sum of code - zero over all weights (or None), and the number of zeros of 0."""
    offset, zeros = None, 0
    for weight in weights:
        if not isinstance(weight, QuantizedWeight):
            continue
        if weight.zero is not None and weight.scheme.kind == uniform.LEVELS:
            of_column = weight.zero[:, weight.column_groups()]
            difference = weight.codes.double().sum() - of_column.double().sum()
            offset = (offset or 0.0) + float(difference)
            zeros += int((weight.zero == 0).sum())
    return offset, zeros
