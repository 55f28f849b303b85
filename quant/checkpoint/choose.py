"""Which format: of a checkpoint by its configuration, of an artifact by its scheme, by its name.

Formats are the modules of quant.checkpoint.formats, in the order of their names; a new file there
is a new format.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from quant.checkpoint import formats as package
from quant.checkpoint import operators
from quant.checkpoint.formats.base import CheckpointFormat, Format, Writer
from quant.errors import ArtifactError
from quant.scheme import Scheme

_NO_FORMAT = ("base",)


def formats() -> tuple[Format, ...]:
    """All formats, in the order of their names; ArtifactError for a file without its FORMAT."""
    return _load(tuple(package.__path__))


def parse(config: Mapping[str, Any], source: str) -> CheckpointFormat:
    """Read a quantization_config; ArtifactError naming the field, its value and what is readable.

    source names the checkpoint in messages.
    """
    where = f"{source}: quantization_config"
    config, kept = operators.unwrap(config, where)
    found = [format for format in formats() if format.matches(config)]
    if not found:
        readable = ", ".join(format.configuration for format in formats())
        raise ArtifactError(
            f"{where}.quant_method={config.get('quant_method')!r} cannot be read; only {readable} "
            "can."
        )
    if len(found) > 1:
        raise ArtifactError(
            f"{where} is {' and '.join(format.title for format in found)} at once; correct "
            "`matches` of these formats."
        )
    return dataclasses.replace(found[0].parse(config, where), operators=kept)


def config_files() -> dict[str, str]:
    """What early checkpoints have instead of a quantization_config, and the quant_method of it."""
    return {each.config_file: each.quant_method for each in formats() if each.config_file}


def written() -> dict[str, tuple[Format, Writer]]:
    """The formats that can be written, by name."""
    return {each.name: (each, each.writer) for each in formats() if each.writer is not None}


def written_format(name: str) -> tuple[Format, Writer]:
    """The format of this name; ArtifactError that lists what can be written."""
    known = written()
    if name not in known:
        raise ArtifactError(f"format {name!r} is unknown; choose one of {', '.join(known)}.")
    return known[name]


def artifact_format(scheme: Scheme) -> tuple[Format, Writer]:
    """The first of Bitsweep's own formats that holds a scheme; ArtifactError when none does."""
    own = [(format, writer) for format, writer in written().values() if writer.own]
    for format, writer in own:
        if writer.refuses(scheme, None) is None:
            return format, writer
    raise ArtifactError(
        f"No format of artifacts ({', '.join(format.name for format, _ in own)}) holds "
        f"{scheme.name}; add one that does to quant/checkpoint/formats (docs/checkpoints.md)."
    )


@lru_cache(maxsize=8)
def _load(folders: tuple[str, ...]) -> tuple[Format, ...]:
    found = []
    for name in sorted(module.name for module in pkgutil.iter_modules(folders)):
        if name in _NO_FORMAT:
            continue
        format = getattr(importlib.import_module(f"{package.__name__}.{name}"), "FORMAT", None)
        expected = name.replace("_", "-")
        if not isinstance(format, Format) or format.name != expected:
            raise ArtifactError(
                f"{package.__name__}.{name} does not end with FORMAT = Format(name={expected!r}, "
                "...); a file in its folder is a checkpoint format: complete it, or move it away."
            )
        found.append(format)
    return tuple(found)
