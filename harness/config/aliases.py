"""YAML files whose aliases stand for more than could be meant: refused before they are expanded.

Nine lines can stand for 10^9 values ("billion laughs"), and OmegaConf copies every one.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from harness.errors import ConfigError

MOST_NODES = 100_000
MOST_FILES = 2000  # of a user's folder, which may be anything
MOST_BYTES = 10**6
MOST_DEPTH = 100


def require_modest(folder: Path) -> None:
    """ConfigError for a YAML file of a user's folder that is, or stands for, too much."""
    for number, file in enumerate(sorted(folder.rglob("*.yaml"))):
        if number == MOST_FILES:
            raise ConfigError(
                f"--config-dir {folder} holds more than {MOST_FILES} YAML files: give a folder "
                "that is laid out like conf/ and holds no others."
            )
        try:
            large = file.is_file() and file.stat().st_size > MOST_BYTES
            text = "" if large else file.read_text(encoding="utf-8")
            if large or not (_plain(text) or _modest(text)):
                raise ConfigError(
                    f"{file} stands for more than {MOST_NODES} values, more than {MOST_DEPTH} deep "
                    "or more than a megabyte, which is no configuration: write it without aliases "
                    "(*name)."
                )
        except (OSError, UnicodeDecodeError):
            continue  # whoever reads it says what is wrong with it


def _plain(text: str) -> bool:
    """Whether a text is too short and simple to stand for much: most are not even parsed."""
    deep = text.count("[") + text.count("{") > MOST_DEPTH
    return "*" not in text and not deep and len(text) < 10_000


def _modest(text: str) -> bool:
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return root is None or _nodes(root, {}, 0) <= MOST_NODES
    except RecursionError:
        return False
    except yaml.YAMLError:  # whoever reads it says what is wrong, unless brackets break him too
        return text.count("[") + text.count("{") <= MOST_DEPTH


def _nodes(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Nodes below and with `node` once its aliases are written out."""
    if depth > MOST_DEPTH:  # also of an alias within what it stands for
        raise RecursionError
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = list(node.value)
        known[id(node)] = 1 + sum(_nodes(part, known, depth + 1) for part in parts)
    return known[id(node)]
