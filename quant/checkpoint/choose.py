"""Which format: of a checkpoint by its configuration, of an artifact by its scheme, by its name.

Formats are the modules of quant.checkpoint.formats, in the order of their names; a new file there
is a new format.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from quant.checkpoint import formats as package
from quant.checkpoint import operators
from quant.checkpoint.formats.base import CheckpointFormat, Format, Writer, declaration, validated
from quant.errors import ArtifactError
from quant.levels.base import Levels, built_in_levels, load_levels
from quant.parts import Part
from quant.scheme import Scheme

_NO_FORMAT = ("base",)


def formats() -> tuple[Format, ...]:
    """All formats, in the order of their names; ArtifactError for a file without its FORMAT."""
    return _load(tuple(package.__path__))


def parse(
    config: Mapping[str, Any], source: str, levels: Sequence[str | Part | Levels] = ()
) -> CheckpointFormat:
    """Read a quantization_config; ArtifactError naming the field, its value and what is readable.

    source names the checkpoint in messages. levels are kinds that it may name besides the built-in
    ones: no module is imported because a checkpoint names it.
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
    parsed = dataclasses.replace(found[0].parse(config, where), operators=kept)
    if found[0].parts is not None:
        return parsed
    known: list[str | Part | Levels] = [*built_in_levels(), *levels]
    named = [each for each in known if load_levels(each).name == parsed.levels]
    if any(load_levels(each) != load_levels(named[0]) for each in named[1:]):
        raise ArtifactError(
            f"{where}.levels={parsed.levels!r} is what {len(named)} of the given kinds of levels "
            "are called: give only the one that the checkpoint was made with."
        )
    kind = named[0] if named else None
    if kind is None:
        module = config.get("levels_module")
        raise ArtifactError(
            f"{where}.levels={parsed.levels!r} are none of Bitsweep's own, and no code is imported "
            "because a checkpoint names it: if you trust it, name the module that has them "
            f"(here it was {module!r}) with model.levels=MODULE, --levels MODULE or, in Python, "
            "levels=[...]."
        )
    ours = load_levels(kind)
    if config.get("levels_version") != ours.version:
        raise ArtifactError(
            f"{where}.levels_version={config.get('levels_version')!r}, but the {parsed.levels} "
            f"levels of this reader are version {ours.version}, whose codes may stand for other "
            "values: name the module that the checkpoint was made with, or make it again."
        )
    if declaration(ours) != config.get("tensors"):
        raise ArtifactError(
            f"{where}.tensors are not those that the {parsed.levels} levels of this reader "
            "declare: name the module that the checkpoint was made with, or make it again."
        )
    return validated(dataclasses.replace(parsed, levels=kind), where)


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
