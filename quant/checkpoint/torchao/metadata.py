"""Hold the headers of torchao's files against its configuration.

Every header has, by the name of a weight, JSON with the class of the tensor (`_type`), its
attributes (`_data`) and the parts that are stored (`_tensor_data_names`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from quant.checkpoint.torchao.settings import width_of
from quant.errors import ArtifactError

# Classes that are read; the value is how many bits a code has, None if an attribute says it.
CLASSES: dict[str, int | None] = {
    "Int8Tensor": 8,
    "IntxUnpackedToInt8Tensor": None,
    "Int4Tensor": 4,
}
OFFSET = "Int4Tensor"  # the class whose zero-point is a weight


def check(
    layers: Iterable[str],
    metadata: Mapping[str, str],
    where: str,
    bits: int,
    group_size: int | None,
    offset: bool,
) -> None:
    """Raise ArtifactError, naming the weight, where the headers and the configuration differ."""
    for layer in layers:
        name = f"{layer}.weight"
        kind, data = _entry(metadata, name, where)
        if kind not in CLASSES:
            raise ArtifactError(
                f"{where}: {name} is of torchao's class {kind}, which cannot be read; only "
                f"{', '.join(CLASSES)} can: quantize again with a weight-only configuration in a "
                "plain layout."
            )
        width = CLASSES[kind] or width_of(data.get("target_dtype"))
        if (width, kind == OFFSET) != (bits, offset):
            said = kind if width is None else f"{kind} of {width} bits"
            raise ArtifactError(
                f"{where}: the header says that {name} is {said}, but config.json says "
                f"{bits} bits{' in the plain int4 layout' if offset else ''}: one of the two is of "
                "another checkpoint; copy it again."
            )
        block = data.get("block_size")
        whole = isinstance(block, list) and len(block) == 2 and block[0] == 1
        if not whole or (group_size is not None and block != [1, group_size]):
            raise ArtifactError(
                f"{where}: the header says that {name} has block_size={block!r}, but config.json "
                f"says [1, {group_size or 'inputs'}]: one of the two is of another checkpoint; "
                "copy it again."
            )


def _entry(metadata: Mapping[str, str], name: str, where: str) -> tuple[str, Mapping[str, Any]]:
    if name not in metadata:
        raise ArtifactError(
            f"{where}: the headers of its safetensors files do not describe {name}, as torchao's "
            "do: another tool rewrote them; copy the original files."
        )
    try:
        said = json.loads(metadata[name])
        return str(said["_type"]), dict(said.get("_data") or {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{where}: the header describes {name} as {metadata[name][:60]!r}, which is not what "
            "torchao writes: the file is damaged; download it again."
        ) from error
