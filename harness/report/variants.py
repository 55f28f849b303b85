"""Names for the entries of a frame: what tells cells of one method and scheme apart."""

from __future__ import annotations

import json
import re
from operator import itemgetter
from typing import Any

from harness.records.hashes import SHA256_DIGITS, digest

LAYERS = "scheme.layers."  # paths of the schemes of single layers
NAMED_LAYERS = 3  # at most, in a name
_DEVICES = re.compile(r"(?:^|; )devices: (\d+)(?:;|$)")  # in the notes of a timing


def name_entries(entries: list[dict[str, Any]]) -> None:
    """Set "label", "options", "variant", "recipe_label" and "row" (see row_key) of entries."""
    _complete_names(entries)
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}  # those of a record are, and of a cell
    for entry in entries:
        alike.setdefault(_named_by(entry), []).append(entry)
    firsts = [those[0] for those in alike.values()]
    _name_variants(firsts)
    _name_recipes(firsts)
    for first, those in zip(firsts, alike.values(), strict=True):
        variant, label, row = first["variant"], first["recipe_label"], row_key(first)
        for entry in those:
            entry["variant"], entry["recipe_label"], entry["row"] = variant, label, row
    _name_places(entries)


def row_key(entry: dict[str, Any]) -> tuple[str, ...]:
    """The names of the row that an entry belongs to."""
    return tuple([name or "" for name in _names_of(entry)])  # a list is quicker than a generator


# All that names an entry, but for the devices of a timing.
_named_by = itemgetter(
    "model", "method", "options", "scheme", "calibration", "label", "cell_config", "recipe"
)
_names_of = itemgetter("model", "method", "variant", "scheme", "calibration")


def _complete_names(entries: list[dict[str, Any]]) -> None:
    """Set "label" and "options" for old records without them.

    They are taken from another record of the cell; otherwise the label is the method's name.
    """
    named = {entry["cell_config"]: entry for entry in entries if entry["label"]}
    labels = {entry["method"]: entry["label"] for entry in entries if entry["label"]}
    for entry in entries:
        if not entry["label"]:
            entry["options"] = named.get(entry["cell_config"], entry)["options"]
            entry["label"] = labels.get(entry["method"], entry["method"])


def _name_variants(entries: list[dict[str, Any]]) -> None:
    """Set "variant": the options and, if configurations share a name, their differences."""
    same_name: dict[tuple[str, ...], set[str]] = {}
    keys = []
    for entry in entries:
        entry["variant"] = entry["options"] or ""
        keys.append(row_key(entry))
        same_name.setdefault(keys[-1], set()).add(entry["cell_config"])
    for entry, key in zip(entries, keys, strict=True):
        if len(same_name[key]) > 1:
            extra = _difference(entry["cell_config"], same_name[key])
            entry["variant"] = ", ".join(text for text in (entry["variant"], extra) if text)


def _name_places(entries: list[dict[str, Any]]) -> None:
    """Tell apart what a suite measured of one cell on one device and over several."""
    counts: dict[str, str] = {}  # devices, by the key of the record
    for entry in entries:
        notes = entry["notes"]
        if notes and "devices: " in notes and (found := _DEVICES.search(notes)):
            counts[entry["key"]] = found[1]
    if not counts:
        return
    several: dict[tuple[Any, ...], set[str]] = {}
    for entry in entries:
        stage = (*row_key(entry), entry["seed"], entry["suite"])
        several.setdefault(stage, set()).add(counts.get(entry["key"], ""))
    told = {stage for stage, found in several.items() if len(found) > 1}
    for entry in entries:
        stage, count = (*row_key(entry), entry["seed"], entry["suite"]), counts.get(entry["key"])
        if count and stage in told:
            entry["variant"] = ", ".join(filter(None, (entry["variant"], f"over {count} devices")))
            entry["row"] = row_key(entry)


def _name_recipes(entries: list[dict[str, Any]]) -> None:
    """Set "recipe_label": the method, its options and, for recipes of one name, differences."""
    same_name: dict[tuple[str, ...], set[str]] = {}
    for entry in entries:
        same_name.setdefault(_recipe_key(entry), set()).add(entry["recipe"])
    extra = {
        recipe: _difference(recipe, recipes) if len(recipes) > 1 else ""
        for recipes in same_name.values()
        for recipe in recipes
    }
    for entry in entries:
        words = ", ".join(filter(None, (entry["options"], extra[entry["recipe"]])))
        entry["recipe_label"] = f"{entry['label']} {words}".strip()


def _recipe_key(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple([name or "" for name in _names_of_recipe(entry)])


_names_of_recipe = itemgetter("model", "label", "options", "scheme")


def _difference(config: str, others: set[str]) -> str:
    """The settings of `config` that differ in any of `others`, such as "sequences=16"."""
    flat = {text: _flatten(json.loads(text)) for text in others}
    mine = flat[config]
    paths = sorted({path for each in flat.values() for path in each})
    differing = [path for path in paths if len({str(each.get(path)) for each in flat.values()}) > 1]
    words = [path for path in differing if not path.startswith(LAYERS)]
    layers = [path for path in differing if path.startswith(LAYERS)]
    said = [f"{path.rsplit('.', 1)[-1]}={_short(mine.get(path))}" for path in words]
    if len(layers) <= NAMED_LAYERS:
        said += [f"{path.removeprefix(LAYERS)}={_short(mine.get(path))}" for path in layers]
    else:  # a hash tells them apart; a footnote counts the layers of each scheme
        said.append(f"layers={digest([[path, mine.get(path)] for path in layers])[:8]}")
    return ", ".join(said)


def _short(value: Any) -> str:
    """A value for a label as a command line has it; only the first digits of a hash."""
    text = "null" if value is None else str(value)
    return text[:8] if len(text) == SHA256_DIGITS and text.isalnum() else text


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        value = {str(number): each for number, each in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat
