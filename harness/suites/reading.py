"""What suites that read texts share: the check of their texts, and what keys say of them."""

from __future__ import annotations

from typing import Any, Protocol

from harness.data import protocols, texts
from harness.data.config import DocumentsConfig
from harness.data.inputs import protocol_hash
from harness.errors import ConfigError
from harness.suites.base import Facts, at_least_one, plain_semantics


class Texts(Protocol):
    """The settings that say which texts are read: windows of `protocols`, some of local `paths`."""

    protocols: list[str]
    paths: dict[str, str]
    max_windows: int | None
    documents: DocumentsConfig


def check(config: Texts, facts: Facts) -> None:
    """Every protocol exists and its text is here or can be fetched; ConfigError otherwise."""
    key = facts.key
    if not config.protocols:
        raise ConfigError(
            f"{key}.protocols is empty: name a text, for example {key}.protocols=[wikitext2]."
        )
    for name in config.paths:
        if name not in config.protocols:
            raise ConfigError(
                f"{key}.paths.{name} is a file for a text that is not measured: add "
                f"{name} to {key}.protocols=[{','.join(config.protocols)}], or drop it."
            )
    at_least_one(f"{key}.max_windows", config.max_windows)
    for name in config.protocols:
        try:
            protocols.check(
                name,
                protocols.EVALUATION,
                path=config.paths.get(name),
                data_dir=facts.data_dir,
                option=f"{key}.paths.{name}",
            )
        except (texts.ProtocolError, texts.TextError) as error:
            raise ConfigError(f"{key}.protocols={name}: {error}.") from error


def inputs(config: Texts, facts: Facts) -> dict[str, str]:
    """A hash of every text by "text PROTOCOL"."""
    return {
        f"text {name}": protocol_hash(protocols.find(name), config.paths.get(name), facts.data_dir)
        for name in config.protocols
    }


def semantics(config: Any) -> dict[str, Any]:
    """The settings, with the paths of those texts alone that are read."""
    settings = plain_semantics(config)
    read = {name: path for name, path in settings["paths"].items() if name in config.protocols}
    return {**settings, "paths": read}
