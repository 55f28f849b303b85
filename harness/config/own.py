"""YAML files of a user's own folder (--config-dir), read before Hydra reads them.

Hydra's composer names no file for some of what can be wrong with one, and ends in a traceback for a
file that is nested too deeply or that aliases blow up.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError

# Values of one file, aliases counted as often as they stand for something: conf/ has dozens.
MOST_VALUES = 10_000
# PyYAML looks at every open bracket for each token: thousands of them take it minutes.
MOST_BRACKETS = 1_000


def check_files(folder: Path, groups: Iterable[str]) -> None:
    """Raise ConfigError for a file of these groups that is no mapping of keys in plain YAML."""
    for group in groups:
        for file in sorted((folder / group).glob("**/*.yaml")):
            read_mapping(file)


def read_mapping(file: Path) -> dict[str, Any]:
    """The keys of a YAML file; ConfigError, in one sentence, for anything else."""
    try:
        text = file.read_bytes().decode("utf-8")
        if max(text.count("["), text.count("{")) > MOST_BRACKETS:
            raise RecursionError
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        reason = f"its byte {error.start + 1} is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except (yaml.YAMLError, OSError) as error:
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split())
    else:
        if content is None:
            return {}
        if not isinstance(content, dict):
            reason = f"it holds a {type(content).__name__}, not a mapping such as KEY: VALUE"
        elif _too_many(content):
            reason = f"with its aliases it has more than {MOST_VALUES} values"
        else:
            return {str(key): value for key, value in content.items()}
    raise ConfigError(f"{file} cannot be read: {reason}; correct it.")


def _too_many(content: Any) -> bool:
    count, rest = 0, [content]
    while rest and count <= MOST_VALUES:
        value = rest.pop()
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, (dict, list, set, tuple)):
            count += len(value)
            rest += inner
    return count > MOST_VALUES
