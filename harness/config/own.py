"""Check the YAML files of a user's folder (--config-dir) before Hydra reads them.

For some faults Hydra's error does not name the file, and it ends in a traceback for a file that is
nested too deeply or that aliases expand to millions of values.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError

MOST_FILES = 2_000  # in a user's folder, which may be any folder
MOST_BYTES = 100_000
# Values of one file with its aliases expanded; files of conf/ have dozens. Nine lines can expand to
# 10^9 values, and OmegaConf would copy each.
MOST_VALUES = 10_000
# PyYAML scans every open bracket for each token: thousands of them take minutes.
MOST_BRACKETS = 1_000


class _TooMuch(Exception):
    """A file is too large or too deep for a configuration."""


def check_files(folder: Path, groups: Iterable[str]) -> None:
    """Raise ConfigError for a file of these groups that is not a YAML mapping.

    Other files in the folder may hold any YAML, within the limits on size and depth.
    """
    files = sorted(folder.rglob("*.yaml"))
    if len(files) > MOST_FILES:
        raise ConfigError(
            f"--config-dir {folder} holds more than {MOST_FILES} YAML files: give a folder laid "
            "out like conf/, without other YAML files."
        )
    inside = {folder / group for group in groups}
    for file in files:
        if inside & set(file.parents):
            read_mapping(file)
            continue
        with suppress(yaml.YAMLError, OSError, UnicodeDecodeError):
            try:
                _load(file)
            except _TooMuch as error:
                raise ConfigError(f"{file} cannot be read: {error}; correct it.") from error


def read_mapping(file: Path) -> dict[str, Any]:
    """Read a YAML file that is a mapping; ConfigError for anything else."""
    try:
        content = _load(file)
    except UnicodeDecodeError as error:
        reason = f"its byte {error.start + 1} is not UTF-8"
    except _TooMuch as error:
        reason = str(error)
    except (yaml.YAMLError, OSError) as error:
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split())
    else:
        if content is None:
            return {}
        if isinstance(content, dict):
            return {str(key): value for key, value in content.items()}
        reason = f"it holds a {type(content).__name__}, not a mapping such as KEY: VALUE"
    raise ConfigError(f"{file} cannot be read: {reason}; correct it.")


def _load(file: Path) -> Any:
    if file.stat().st_size > MOST_BYTES:
        raise _TooMuch(f"it has more than {MOST_BYTES} bytes")
    text = file.read_bytes().decode("utf-8")
    try:
        if max(text.count("["), text.count("{")) > MOST_BRACKETS:
            raise RecursionError
        content = yaml.safe_load(text)
    except RecursionError:
        raise _TooMuch("it is nested too deeply") from None
    if _too_many(content):
        raise _TooMuch(f"with its aliases it has more than {MOST_VALUES} values")
    return content


def _too_many(content: Any) -> bool:
    count, rest = 0, [content]
    while rest and count <= MOST_VALUES:
        value = rest.pop()
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, (dict, list, set, tuple)):
            count += len(value)
            rest += inner
    return count > MOST_VALUES
