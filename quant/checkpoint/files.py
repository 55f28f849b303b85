"""Find the files of a model's folder that contain its weights, and the files that may be copied.

Everything that reads weights uses `weight_files`: fingerprints, loading in full precision, block
sources, converting, exporting. It has the search order of transformers (modeling_utils'
`_get_resolved_checkpoint_files`, compared by a test), so all of them read the same files as
transformers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from quant.checkpoint.folder import remake
from quant.checkpoint.foreign import config_of, refuse_foreign
from quant.errors import ArtifactError

INDEX_SUFFIX = ".index.json"
# The first of these files that exists is used.
ORDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Config files that early quantized checkpoints have instead of a quantization_config.
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json")
TOKENIZER_FILES = (
    "added_tokens.json",
    "bpe.codes",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.bpe",
    "vocab.json",
    "vocab.model",
    "vocab.txt",
)
_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)
# transformers prefers these files to all others, and reads complete sets only on several ranks.
_DISTRIBUTED = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_KINDS = "model.safetensors or pytorch_model.bin, or shards with an index"


@dataclass(frozen=True)
class WeightFiles:
    """The files of a folder that contain the weights.

    names   relative to the folder, in reading order.
    index   the file that lists them as shards; None for a single file.
    placed  tensor to file, from the index; empty without one.
    unread  other weight files in the folder, which are not read.
    """

    folder: Path
    names: tuple[str, ...]
    index: str | None = None
    placed: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def pickled(self) -> bool:
        """Whether they are .bin files, which cannot be read tensor by tensor."""
        return self.names[0].endswith(".bin")

    @property
    def paths(self) -> list[Path]:
        """Return the paths of the files."""
        return [self.folder / name for name in self.names]

    def ambiguity(self) -> str | None:
        """Return a sentence that says what is read and what is not; None if there is no choice."""
        if not self.unread:
            return None
        chosen = self.index or self.names[0]
        return (
            f"weights are read from {chosen}, as transformers does; not read: "
            f"{_listed(self.unread)}"
        )


def weight_files(folder: Path) -> WeightFiles:
    """Find the files with the weights of the model in `folder`, in transformers' search order.

    If none of the usual files exists, a quantized checkpoint may have a single file or index with
    another name (gptq_model-4bit-128g.safetensors). Raises ArtifactError if there is no candidate
    or more than one, if a shard is missing, or for a known format that is not read.
    """
    refuse_foreign(folder)
    config = config_of(folder)
    present = {path.name for pattern in _WEIGHTS for path in folder.glob(pattern)}
    _refuse_other_kinds(folder, present)
    chosen = _explicit(folder, config) or choose(present) or _other_name(folder, config, present)
    names: tuple[str, ...] = (chosen,)
    placed: dict[str, str] = {}
    if chosen.endswith(INDEX_SUFFIX):
        placed = _placed(folder / chosen)
        names = tuple(sorted(set(placed.values())))
    for name in names:
        _require_inside(folder, name)
        if not (folder / name).is_file():
            raise ArtifactError(
                f"{folder / name} is missing, but {chosen} names it. {remake(folder)}"
            )
    index = chosen if placed else None
    unread = tuple(sorted(present - set(names) - {chosen}))
    return WeightFiles(folder, names, index, placed, unread)


def choose(names: Collection[str]) -> str | None:
    """Return the file that is used among `names` of a folder; None without a usual name."""
    return next((name for name in ORDER if name in names), None)


def copyable(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the paths of those `names` that exist as files in `folder`, sorted.

    A symbolic link may point into the folder, or into the blobs of the hub cache that contains the
    folder. Raises ArtifactError for a link to another place, which is not part of the model.
    """
    found = [folder / name for name in sorted(set(names)) if (folder / name).is_file()]
    for path in found:
        _require_own(folder, path)
    return found


def copy_files(paths: Iterable[Path], target: Path) -> None:
    """Copy files from `copyable` (contents only) into the folder `target`."""
    for path in paths:
        shutil.copyfile(path, target / path.name)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer files in the folder of a model; ArtifactError as in `copyable`."""
    return copyable(folder, TOKENIZER_FILES)


def _require_own(folder: Path, path: Path) -> None:
    home, place = folder.resolve(), path.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # models--OWNER--NAME/{snapshots/REVISION,blobs}
        allowed.append(home.parents[1] / "blobs")
    if not any(place.is_relative_to(root) for root in allowed):
        raise ArtifactError(
            f"{path} is a link to {place}, outside the model's folder, and is not copied: replace "
            "it by the file itself, or remove the link."
        )


def _refuse_other_kinds(folder: Path, present: Collection[str]) -> None:
    distributed = sorted(name for name in present if _DISTRIBUTED.fullmatch(name))
    if distributed:
        raise ArtifactError(
            f"{folder / distributed[0]} is a shard of a distributed checkpoint: write the model "
            "with save_pretrained into another folder and use that."
        )
    if (folder / "adapter_config.json").is_file():
        raise ArtifactError(
            f"{folder} contains adapter_config.json, an adapter that transformers applies only if "
            "peft is installed: merge it into the model (merge_and_unload) or move it away."
        )


def _explicit(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the weight file that config.json names, if it names one."""
    name = config.get("transformers_weights")
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ArtifactError(
            f"{folder / 'config.json'}: transformers_weights={name!r} is not a safetensors file: "
            "correct it or leave it out."
        )
    _require_inside(folder, name)
    if not (folder / name).is_file():
        raise ArtifactError(f"{folder / name} is missing, but config.json names it; copy it again.")
    return name


def _require_inside(folder: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactError(
            f"{folder}: its files name the weights {name}, which is outside the folder: copy the "
            "model again from where it came from."
        )


def _other_name(folder: Path, config: Mapping[str, Any], present: Collection[str]) -> str:
    """Return the only weight file or index of a quantized checkpoint with an unusual name."""
    said = isinstance(config.get("quantization_config"), dict)
    quantized = said or any((folder / name).is_file() for name in QUANTIZATION_FILES)
    indexes = sorted(name for name in present if name.endswith(f".safetensors{INDEX_SUFFIX}"))
    single = sorted(name for name in present if name.endswith(".safetensors"))
    for found in (indexes, single) if quantized else ():
        if len(found) == 1:
            return found[0]
    there = [*indexes, *single, *sorted(name for name in present if name.endswith(".bin"))]
    if not there:
        raise ArtifactError(f"{folder} has no weights ({_KINDS}): copy them beside config.json.")
    raise ArtifactError(
        f"{folder} has no weights under a name that transformers reads ({_KINDS}), but "
        f"{_listed(there)}: rename the right one, or copy the index that belongs to the shards."
    )


def _placed(index: Path) -> dict[str, str]:
    try:
        placed = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{index} cannot be read as JSON: {error}. Copy it again from where it came from."
        ) from error
    if not isinstance(placed, dict) or not placed or not are_texts(placed.values()):
        raise ArtifactError(f"{index} has no weight_map. Copy it again from where it came from.")
    return placed


def are_texts(values: Iterable[object]) -> bool:
    """Whether all values are str."""
    return all(isinstance(value, str) for value in values)


def _listed(names: Collection[str], most: int = 4) -> str:
    shown = list(names)[:most]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
