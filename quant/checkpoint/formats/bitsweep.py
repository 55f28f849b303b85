"""Format for any levels: the tensors of quant.linear.pack, for external number formats.

The configuration has the fields of the scheme, the name of the levels, the declaration of their
tensors and the module that defined them. A reader uses the levels that it was given or has built in
(quant.checkpoint.choose.parse).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quant.checkpoint import gptq
from quant.checkpoint.formats import gptq_v2
from quant.checkpoint.formats.base import (
    CheckpointFormat,
    Config,
    Format,
    QuantizedModel,
    StoredLayer,
    Writer,
    declaration,
    read_bits,
    read_flag,
    read_group_size,
)
from quant.checkpoint.meta import read_meta
from quant.errors import ArtifactError
from quant.levels import ternary, uniform
from quant.levels.base import module_of
from quant.scheme import SCALE_DTYPES, Scheme

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Read, Shape, Tensors

# A separate quant_method, so that no loader reads the codes with another grid.
METHOD = "bitsweep"
VERSION = 1


def matches(config: Config) -> bool:
    return config.get("quant_method") == METHOD


def parse(config: Config, where: str) -> CheckpointFormat:
    if config.get("version") != VERSION:
        raise ArtifactError(
            f"{where}.version={config.get('version')!r} cannot be read; only {VERSION} can."
        )
    for key in ("levels", "grid"):
        if not isinstance(config.get(key), str):
            raise ArtifactError(f"{where}.{key}={config.get(key)!r} cannot be read; use a name.")
    if config.get("scale_dtype") not in SCALE_DTYPES:
        raise ArtifactError(
            f"{where}.scale_dtype={config.get('scale_dtype')!r} cannot be read; expected one of "
            f"{', '.join(SCALE_DTYPES)}."
        )
    parsed = CheckpointFormat(
        format=FORMAT,
        bits=read_bits(config, where),
        group_size=read_group_size(config, where),
        symmetric=read_flag(config, "sym", where, default=None),
        act_order=read_flag(config, "desc_act", where, default=None),
        levels=config["levels"],
        grid=config["grid"],
        scale_dtype=config["scale_dtype"],
        producer=read_meta(config)[1],
    )
    return gptq.with_dynamic(parsed, config, where, of_uniform=gptq_v2.FORMAT)


def zero_points(_parsed: CheckpointFormat) -> str:
    return "as the levels have them"


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, shape: Shape) -> Read:
    from quant.checkpoint.gptq_layers import read

    found = read(tensors, parsed, layer, shape)
    scheme = found.scheme
    if scheme.max_code < 2**scheme.bits - 1:
        words = found.words  # asking the weight for codes would unpack it for good
        largest = int((found.codes if words is None else words.unpack()).max())
        if largest > scheme.max_code:
            raise ArtifactError(
                f"{layer}.qweight holds code {largest}; {parsed.scheme(scheme.scale_dtype).name} "
                f"has 0 to {scheme.max_code}. The file is damaged."
            )
    return found


def refuses(scheme: Scheme, _layer: StoredLayer | None) -> str | None:
    if scheme.kind not in (uniform.LEVELS, ternary.LEVELS):
        return None
    fitting = "gptq-v2" if scheme.kind == uniform.LEVELS else "bitsweep-ternary"
    return (
        f"has {scheme.kind.name} levels, and {FORMAT.name} is only for levels that no other format "
        f"supports: export to {fitting}."
    )


def describe(model: QuantizedModel) -> dict[str, Any]:
    scheme = model.scheme
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": model.act_order,
        "grid": scheme.grid,
        "scale_dtype": scheme.scale_dtype,
        "levels": scheme.kind.name,
        "levels_module": module_of(scheme.levels),
        "levels_version": scheme.kind.version,
        "tensors": declaration(scheme.kind),
        **gptq.dynamic_settings(model),
        "meta": model.meta(),
    }


def notes(scheme: Scheme, _layers: Sequence[StoredLayer]) -> list[str]:
    return [
        f"only Bitsweep reads {scheme.kind.name} levels, with the module {module_of(scheme.levels)}"
        "; other tools stop at the names of the files."
    ]


FORMAT = Format(
    name="bitsweep",
    title="Bitsweep",
    quant_method=METHOD,
    variant=f"version {VERSION}",
    readers="Bitsweep, with the module of the levels",
    parts=None,
    codes="qweight",
    scales=None,
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    # transformers only warns about an unknown quant_method and would continue with random weights;
    # an unusual file name makes it stop.
    writer=Writer(
        refuses=refuses,
        entries=gptq.entries,
        write_layer=gptq.write_layer,
        describe=describe,
        notes=notes,
        own=True,
        mixes=True,
        stem="bitsweep",
    ),
    library="bitsweep",
)
