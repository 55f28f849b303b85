"""Choose a format: of a checkpoint from its configuration, of an artifact from its scheme.

Formats are the modules of quant.checkpoint.formats, in the order of their names; a new module there
is a new format.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from quant.budget import AnyScheme, Budget
from quant.checkpoint import formats as package
from quant.checkpoint import operators, tables
from quant.checkpoint.formats.base import CheckpointFormat, Format, Writer, declaration, validated
from quant.checkpoint.one_file import FileFormat
from quant.errors import ArtifactError
from quant.levels.base import Levels, built_in_levels, load_levels
from quant.parts import Part
from quant.scheme import Scheme

_NO_FORMAT = ("base",)


def formats() -> tuple[Format, ...]:
    """Return all formats of folders, by name; ArtifactError for a module without FORMAT."""
    return tuple(each for each in _load(tuple(package.__path__)) if isinstance(each, Format))


def parse(
    config: Mapping[str, Any], source: str, levels: Sequence[str | Part | Levels] = ()
) -> CheckpointFormat:
    """Parse a quantization_config; ArtifactError names the field, its value and the valid values.

    source names the checkpoint in messages. levels are kinds of levels that the checkpoint may use
    besides the built-in ones; no module is imported because a checkpoint names it.
    """
    where = f"{source}: quantization_config"
    config, kept = operators.unwrap(config, where)
    config, table = tables.unwrap(config, where)
    found = [format for format in formats() if format.matches(config)]
    if not found:
        readable = ", ".join(format.configuration for format in formats())
        raise ArtifactError(
            f"{where}.quant_method={config.get('quant_method')!r} cannot be read; only {readable} "
            "can."
        )
    if len(found) > 1:
        raise ArtifactError(
            f"{where} matches both {' and '.join(format.title for format in found)}; correct "
            "`matches` of these formats."
        )
    parsed = dataclasses.replace(found[0].parse(config, where), operators=kept)
    parsed = _with_levels(parsed, config, where, levels)
    if table is not None:
        of_uniform = artifact_format(Scheme(bits=8))[0]
        own = tables.read(table, f"{where}.embeddings", parsed, of_uniform)
        parsed = validated(dataclasses.replace(parsed, embeddings=own), where)
    return parsed


def _with_levels(
    parsed: CheckpointFormat,
    config: Mapping[str, Any],
    where: str,
    levels: Sequence[str | Part | Levels],
) -> CheckpointFormat:
    """Return the format of any levels with the reader's own kind; other formats as they are."""
    if parsed.format.parts is not None:
        return parsed
    known: list[str | Part | Levels] = [*built_in_levels(), *levels]
    named = [each for each in known if load_levels(each).name == parsed.levels]
    if any(load_levels(each) != load_levels(named[0]) for each in named[1:]):
        raise ArtifactError(
            f"{where}.levels={parsed.levels!r} is the name of {len(named)} of the given kinds of "
            "levels: pass only the one that the checkpoint was made with."
        )
    kind = named[0] if named else None
    if kind is None:
        module = config.get("levels_module")
        raise ArtifactError(
            f"{where}.levels={parsed.levels!r} are not Bitsweep's own, and no code is imported "
            "because a checkpoint names it: if you trust the module that defines them (here "
            f"{module!r}), pass it with model.levels=MODULE, --levels MODULE or, in Python, "
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
    """Return the config files that early checkpoints have, with the quant_method of each."""
    return {each.config_file: each.quant_method for each in formats() if each.config_file}


def written() -> dict[str, tuple[Format, Writer]]:
    """Return the formats of folders that can be written, by name."""
    return {each.name: (each, each.writer) for each in formats() if each.writer is not None}


def written_format(name: str) -> tuple[Format, Writer]:
    """Return a writable format of folders by name; KeyError for another."""
    return written()[name]


def exported() -> dict[str, Format | FileFormat]:
    """Return the formats that `export` writes, folders and files, by name."""
    found = _load(tuple(package.__path__))
    return {each.name: each for each in found if isinstance(each, FileFormat) or _exports(each)}


def _exports(format: Format) -> bool:
    """Whether a format of folders is written by `export`, which reads codes alone."""
    return format.writer is not None and not format.writer.factored


def exported_format(name: str) -> Format | FileFormat:
    """Return a format that `export` writes by name; ArtifactError lists them."""
    known = exported()
    if name not in known:
        raise ArtifactError(f"format {name!r} is unknown; choose one of {', '.join(known)}.")
    return known[name]


def writer_in(format: Format) -> Writer:
    """Return the writer of a format that is written."""
    assert format.writer is not None
    return format.writer


def writer_of(writer: Writer, scheme: Scheme) -> Writer:
    """Return the writer of one layer of a model that `writer` describes.

    A head with uniform levels beside layers with others is stored as an artifact of its own levels.
    """
    alone = writer.own and writer.refuses(scheme, None) is not None
    return artifact_format(scheme)[1] if alone else writer


def artifact_format(scheme: AnyScheme) -> tuple[Format, Writer]:
    """Return the first of Bitsweep's own formats that supports a scheme; ArtifactError if none."""
    factored = isinstance(scheme, Budget)
    every = [(format, writer) for format, writer in written().values() if writer.own]
    own = [(format, writer) for format, writer in every if writer.factored == factored]
    for format, writer in own:
        if writer.refuses(scheme, None) is None:
            return format, writer
    raise ArtifactError(
        f"No format of artifacts ({', '.join(format.name for format, _ in own)}) supports "
        f"{scheme.name}; add one that does to quant/checkpoint/formats (docs/checkpoints.md)."
    )


@lru_cache(maxsize=8)
def _load(folders: tuple[str, ...]) -> tuple[Format | FileFormat, ...]:
    found: list[Format | FileFormat] = []
    for name in sorted(module.name for module in pkgutil.iter_modules(folders)):
        if name in _NO_FORMAT:
            continue
        format = getattr(importlib.import_module(f"{package.__name__}.{name}"), "FORMAT", None)
        expected = name.replace("_", "-")
        if not isinstance(format, Format | FileFormat) or format.name != expected:
            raise ArtifactError(
                f"{package.__name__}.{name} does not end with FORMAT = Format(name={expected!r}, "
                "...); every module in that folder must be a format: complete it, or move it away."
            )
        found.append(format)
    return tuple(found)
