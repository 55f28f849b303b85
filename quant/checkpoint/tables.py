"""Quantized token embeddings: how checkpoints in Bitsweep's own formats describe them.

No other reader looks rows up in a packed table; it would find no embeddings and might go on with
random ones. A model with such a table therefore has a quantization_config with a quant_method of
its own, which contains the quantization_config of its layers:

    {"quant_method": "bitsweep_embeddings",
     "layers": {"quant_method": "gptq", ...},
     "embeddings": {"bits": 8, "group_size": 32, "sym": false, "levels": "uniform",
                    "grid": "minmax", "scale_dtype": "float16"}}

The table is stored as a layer is, under its own name (`model.embed_tokens.qweight`), with a column
for every token. If config.json ties the head to it, it is the head's matrix too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quant.errors import ArtifactError
from quant.levels import uniform
from quant.scheme import GRIDS, SCALE_DTYPES

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import CheckpointFormat, Format
    from quant.scheme import Scheme

METHOD = "bitsweep_embeddings"
# transformers only warns about an unknown quant_method and loads what it can read; an unusual file
# name makes it stop.
STEM = "bitsweep-embeddings"


def wrap(layers: Mapping[str, Any], scheme: Scheme | None) -> dict[str, Any]:
    """Return the quantization_config of a model whose embeddings have a scheme (None: they are not
    quantized); `layers` is the one of its layers.
    """
    if scheme is None:
        return dict(layers)
    settings = {
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "levels": scheme.kind.name,
        "grid": scheme.grid,
        "scale_dtype": scheme.scale_dtype,
    }
    return {"quant_method": METHOD, "layers": dict(layers), "embeddings": settings}


def unwrap(
    config: Mapping[str, Any], where: str
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return the quantization_config of the layers, and the settings of the embeddings (None:
    they are not quantized); ArtifactError.
    """
    if config.get("quant_method") != METHOD:
        return config, None
    layers, settings = config.get("layers"), config.get("embeddings")
    if not isinstance(layers, Mapping) or layers.get("quant_method") == METHOD:
        raise ArtifactError(f"{where}.layers is not the quantization_config of layers.")
    if not isinstance(settings, Mapping):
        raise ArtifactError(f"{where}.embeddings={settings!r} cannot be read; it has settings.")
    return layers, settings


def read(
    settings: Mapping[str, Any], where: str, layers: CheckpointFormat, of_uniform: Format
) -> dict[str, Any]:
    """Return the fields of CheckpointFormat that the embeddings have instead of those of `layers`.

    of_uniform is the format of a table with uniform levels, if the layers have others.
    """
    from quant.checkpoint.formats.base import read_bits, read_flag, read_group_size
    from quant.levels.base import load_levels

    kind = load_levels(layers.levels).name
    levels, grid, scales = (settings.get(key) for key in ("levels", "grid", "scale_dtype"))
    if levels not in (uniform.LEVELS.name, kind):
        raise ArtifactError(
            f"{where}.levels={levels!r} cannot be read; expected {uniform.LEVELS.name!r} or the "
            "levels of the layers."
        )
    if grid not in (*GRIDS, *load_levels(layers.levels).grids):
        raise ArtifactError(f"{where}.grid={grid!r} cannot be read; use a name.")
    if scales not in SCALE_DTYPES:
        raise ArtifactError(
            f"{where}.scale_dtype={scales!r} cannot be read; expected one of "
            f"{', '.join(SCALE_DTYPES)}."
        )
    own = {} if levels == kind else {"format": of_uniform, "levels": levels}
    return own | {
        "bits": read_bits(settings, where),
        "group_size": read_group_size(settings, where),
        "symmetric": read_flag(settings, "sym", where, default=None),
        "act_order": False,
        "grid": grid,
        "scale_dtype": scales,
    }
