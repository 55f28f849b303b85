"""Format of factored weights (quant.weight): the tensors of each layer's form, as they are.

A tensor is called LAYER.FORM.TENSOR, such as model.layers.0.mlp.up_proj.low_rank.left, so that the
files say the form of every layer, and one artifact may hold several. Only Bitsweep reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quant.budget import AnyScheme, Budget
from quant.checkpoint.formats.base import (
    CheckpointFormat,
    Config,
    Format,
    QuantizedModel,
    StoredLayer,
    Writer,
    require_tensors,
)
from quant.checkpoint.meta import read_meta
from quant.errors import ArtifactError, SchemeError
from quant.forms.base import forms

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Entries, Shape, Tensors
    from quant.linear import Packed
    from quant.weight import AnyWeight, FactoredWeight

METHOD = "bitsweep_factored"
VERSION = 1


def matches(config: Config) -> bool:
    return config.get("quant_method") == METHOD


def parse(config: Config, where: str) -> CheckpointFormat:
    if config.get("version") != VERSION:
        raise ArtifactError(
            f"{where}.version={config.get('version')!r} cannot be read; only {VERSION} can."
        )
    try:
        budget = Budget(config.get("budget"))  # type: ignore[arg-type]  # checked there
    except SchemeError as error:
        raise ArtifactError(f"{where}.budget cannot be read: {error}") from error
    return CheckpointFormat(
        format=FORMAT,
        bits=16,
        group_size=None,
        symmetric=False,
        act_order=False,
        producer=read_meta(config)[1],
        budget=budget,
    )


def zero_points(_parsed: CheckpointFormat) -> str:
    return "none: no codes"


def read_layer(
    tensors: Tensors,
    parsed: CheckpointFormat,
    layer: str,
    shape: Shape,  # noqa: ARG001
) -> FactoredWeight:
    from quant.weight import FactoredWeight

    names = sorted({name.partition(".")[0] for name in tensors})
    if len(names) != 1 or names[0] not in forms():
        raise ArtifactError(
            f"{layer} has tensors of the forms {', '.join(names) or 'none'}; a layer has one of "
            f"{', '.join(forms())}: the file is damaged, or of a later version."
        )
    form = forms()[names[0]]
    require_tensors(tensors, [f"{form.name}.{name}" for name in form.tensors], layer)
    held = {name: tensors[f"{form.name}.{name}"] for name in form.tensors}
    assert parsed.budget is not None
    try:
        return FactoredWeight(form, held, parsed.budget)
    except ValueError as error:
        raise ArtifactError(f"{layer}: {error}: the file is damaged.") from error


def stored(weight: FactoredWeight) -> Packed:
    """Return the tensors of a weight by their names in files, without that of the layer."""
    return {f"{weight.form.name}.{name}": weight.tensors[name] for name in weight.form.tensors}


def refuses(_scheme: AnyScheme, _layer: StoredLayer | None) -> str | None:
    return None  # only budgets come here (quant.checkpoint.choose.artifact_format)


def entries(scheme: AnyScheme, layer: StoredLayer) -> Entries:
    raise AssertionError(f"{layer.name}: {scheme.name} does not say the tensors of a weight")


def write_layer(weight: AnyWeight, layer: StoredLayer) -> Packed:
    raise AssertionError(f"{layer.name}: factored weights are written as they are ({weight.shape})")


def describe(model: QuantizedModel) -> dict[str, Any]:
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "budget": model.scheme.bits,
        "meta": {"producer": model.producer, "method": dict(model.method)},
    }


def notes(_scheme: AnyScheme, _layers: Sequence[StoredLayer]) -> list[str]:
    return ["only Bitsweep reads factored weights; other tools stop at the names of the files."]


FORMAT = Format(
    name="bitsweep-factored",
    title="Bitsweep factored",
    quant_method=METHOD,
    readers="Bitsweep alone",
    parts=tuple(f"{form.name}.{name}" for form in forms().values() for name in form.tensors),
    codes="",
    scales=None,
    marks=tuple(f"{form.name}.{form.first}" for form in forms().values()),
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    # transformers only warns about an unknown quant_method and would continue with random weights;
    # an unusual file name makes it stop.
    writer=Writer(
        refuses=refuses,
        entries=entries,
        write_layer=write_layer,
        describe=describe,
        notes=notes,
        own=True,
        stem="bitsweep-factored",
        factored=True,
    ),
    library="bitsweep",
    counts_files=True,
)
