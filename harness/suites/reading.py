"""Functions shared by suites that read texts: checks, input hashes and settings for keys."""

from __future__ import annotations

from typing import Any, Protocol

from harness.data import protocols, texts
from harness.data.config import DocumentsConfig
from harness.data.inputs import protocol_hash
from harness.errors import ConfigError, MissingData
from harness.suites.base import Facts, at_least_one, plain_semantics


class Texts(Protocol):
    """Settings that choose texts: `protocols`, and local `paths` for some of them."""

    protocols: list[str]
    paths: dict[str, str]
    max_windows: int | None
    documents: DocumentsConfig


def check(config: Texts, facts: Facts, some: bool = False) -> None:
    """Raise ConfigError unless all protocols exist and their texts are available.

    some  texts of the hub that cannot be had are no error if another text can (`lacking`).
    """
    key = facts.key
    if not config.protocols:
        raise ConfigError(
            f"{key}.protocols is empty: name a text, for example {key}.protocols=[wikitext2]."
        )
    for name in config.paths:
        if name not in config.protocols:
            raise ConfigError(
                f"{key}.paths.{name} is a file for a text that is not measured: add "
                f"{name} to {key}.protocols=[{','.join(config.protocols)}], or remove it."
            )
    at_least_one(f"{key}.max_windows", config.max_windows)
    absent = lacking(config, key, facts.data_dir)
    if absent and not (some and len(absent) < len(set(config.protocols))):
        raise MissingData(next(iter(absent.values())))


def lacking(config: Texts, key: str, data_dir: str | None = None) -> dict[str, str]:
    """A sentence for each text of the hub that cannot be had, by protocol.

    key  of the suite's configuration. Raises ConfigError for any other fault of a protocol.
    """
    found = {}
    for name in config.protocols:
        try:
            protocols.check(
                name,
                protocols.EVALUATION,
                path=config.paths.get(name),
                data_dir=data_dir,
                option=f"{key}.paths.{name}",
                documents=config.documents,
            )
        except texts.AbsentText as error:
            found[name] = f"{key}.protocols={name}: {error}."
        except (texts.ProtocolError, texts.TextError) as error:
            raise ConfigError(f"{key}.protocols={name}: {error}.") from error
    return found


def inputs(config: Texts, facts: Facts) -> dict[str, str]:
    """Hashes of the texts, by "text PROTOCOL"."""
    return {
        f"text {name}": protocol_hash(protocols.find(name), config.paths.get(name), facts.data_dir)
        for name in config.protocols
    }


def semantics(config: Any) -> dict[str, Any]:
    """The settings, with the paths of only those texts that are read."""
    settings = plain_semantics(config)
    read = {name: path for name, path in settings["paths"].items() if name in config.protocols}
    return {**settings, "paths": read}
