"""PartialArtifact: an unfinished artifact that stores blocks as they are finished.

    .<name>.partial/          beside the artifact, removed when the artifact is complete
      lock                    held by the process that writes here
      key.json                identifies the artifact; with another key, everything is deleted
      artifact/               the finished shards, one per block
      blocks/00000.json       checksum of a block's shard, with the block's results and costs
      activations/            scratch files of the run (quant.calibrate.activations)

A block is finished when its JSON file exists, which is written last and atomically.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from quant.blocks import named_layers, weight_matrix
from quant.budget import AnyScheme, Budget
from quant.calibrate.cost import StageCost
from quant.calibrate.layers import LayerResult
from quant.calibrate.results import KeptWeights
from quant.calibrate.sink import Finished
from quant.calibrate.source import BlockSource
from quant.checkpoint.card import Count, Origin, write_card
from quant.checkpoint.folder import make_room, publish, sha256, sync, working_folder, writing
from quant.checkpoint.names import names_of
from quant.checkpoint.operators import read_operators, stored_operators
from quant.checkpoint.tensors import Entry, shard_names, write_index, write_shard
from quant.checkpoint.writer import (
    SLACK_BYTES,
    as_stored,
    config_json,
    content_of,
    full_precision,
    quantized,
    scattered,
    stem_of,
    tokenizer_to_copy,
    write_other_files,
)
from quant.errors import ArtifactError
from quant.forms.base import forms
from quant.head import find_embeddings, find_head, serves_head
from quant.input_operator import InputOperator
from quant.linear import packed_bytes, packed_shapes, unpack
from quant.transforms.base import Transform
from quant.weight import AnyWeight, FactoredWeight

ACTIVATIONS = "activations"
_KEY, _ARTIFACT, _BLOCKS = "key.json", "artifact", "blocks"


def note_file(folder: Path, index: int) -> Path:
    """Return the path of the notes on a finished block in a working folder."""
    return folder / _BLOCKS / f"{index:05}.json"


@dataclass(frozen=True)
class Making:
    """The definition of an artifact, without its blocks.

    identity  everything that determines the result, as JSON: hashes of model and calibration, the
              configuration, versions. A run continues the work of another only if both are the
              same.
    method    written into config.json, see quant.save.
    origin    what the model card says besides; it determines nothing else.
    """

    target: Path
    scheme: AnyScheme
    identity: Mapping[str, Any]
    method: Mapping[str, Any]
    tokenizer: Path | None = None
    origin: Origin = field(default_factory=Origin)

    @property
    def key(self) -> str:
        """Return the sha256 of the identity and of the code that makes artifacts."""
        parts = {"identity": self.identity, "method": self.method, "code": code_hash()}
        text = json.dumps({**parts, "torch": torch.__version__}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """The working folder."""
        return working_folder(self.target)


class PartialArtifact:
    """A block sink (quant.calibrate.sink.BlockSink) that writes an artifact."""

    def __init__(self, making: Making, source: BlockSource, needed_bytes: int) -> None:
        self._making, self._source, self._needed = making, source, needed_bytes
        self._shards = shard_names(stem_of(making.scheme), len(source.blocks) + 1)
        self._folder = making.folder / _ARTIFACT
        self._notes: list[dict[str, Any]] = []
        self._names = names_of(source.model)
        self._outside = KeptWeights()  # embeddings and head, packed
        self._take_over()

    @property
    def finished(self) -> int:
        return len(self._notes)

    def put(self, index: int, weights: dict[str, AnyWeight], made: Finished) -> Callable[[], None]:
        """Accept a block: layers to pack, and its other tensors, in the model's dtype."""
        prefix = f"{self._source.blocks.block_name(index)}."
        model = self._source.model
        beside = full_precision(
            self._making.target, model, weights, lambda name: name.startswith(prefix)
        )
        # Copy now: the block runs on, and leaves the device, before these are written.
        packed, operators = quantized(weights), stored_operators(model, weights)
        count = Count.of(packed, beside)
        entries = [*packed, *map(_copied, beside)]
        return functools.partial(self._keep, index, entries, weights, made, operators, count)

    def _keep(
        self,
        index: int,
        entries: list[Entry],
        weights: dict[str, AnyWeight],
        made: Finished,
        operators: Mapping[str, Any],
        count: Count,
    ) -> None:
        """Write a block, then the notes that mark it as finished."""
        note = self._write(self._shards[index], entries)
        note["scattered"] = [name for name, weight in weights.items() if scattered(weight)]
        note["operators"] = dict(operators)
        note["count"] = dataclasses.asdict(count)
        note["layers"] = [dataclasses.asdict(layer) for layer in made.layers]
        note["stages"] = [dataclasses.asdict(stage) for stage in made.stages]
        with writing(self._making.target, self._needed):
            _write_json(self._note_file(index), note)
        self._notes.append(note)

    def put_outside(self, name: str, weight: AnyWeight) -> None:
        """Accept the embeddings or the head, written with everything else outside the blocks."""
        self._outside.add({name: weight})
        self._outside.pack([name])

    def get(self, index: int) -> tuple[dict[str, AnyWeight], Finished]:
        """Read back a finished block."""
        note = self._notes[index]
        made = Finished(
            [LayerResult(**layer) for layer in note["layers"]],
            [StageCost(**stage) for stage in note["stages"]],
        )
        tensors = self._read(note)
        weights: dict[str, AnyWeight] = {}
        for layer in made.layers:
            scheme = self._making.scheme.of(layer.name)
            if isinstance(scheme, Budget):
                weights[layer.name] = _factored(tensors, scheme, layer)
                continue
            parts = packed_shapes(scheme, layer.inputs, layer.outputs)
            packed = {part: tensors[f"{layer.name}.{part}"] for part in parts}
            if layer.name in note["scattered"]:
                packed["g_idx"] = tensors[f"{layer.name}.g_idx"]
            weights[layer.name] = unpack(packed, scheme, layer.inputs)
        return weights, made

    def other_tensors(self, index: int) -> dict[str, Tensor]:
        """Read back the tensors of a finished block that are not quantized weights."""
        note = self._notes[index]
        layers = [layer["name"] for layer in note["layers"]]
        packed = tuple(f"{layer}." for layer in layers)
        biases = {f"{layer}.bias" for layer in layers}
        tensors = self._read(note)
        return {
            name: tensor
            for name, tensor in tensors.items()
            if name in biases or not name.startswith(packed)
        }

    def operators(self, index: int, transforms: Sequence[Transform]) -> dict[str, InputOperator]:
        """Rebuild the operators of a finished block."""
        note = self._notes[index]
        inputs = {layer["name"]: layer["inputs"] for layer in note["layers"]}
        tensors = self._read(note)
        return read_operators(note["operators"], transforms, tensors, inputs, note["file"])

    def complete(self) -> None:
        """Write everything outside the blocks, and move the artifact to its place in one step."""
        making, model = self._making, self._source.model
        layers = [layer["name"] for note in self._notes for layer in note["layers"]]
        layers += self._outside
        inside = f"{self._source.blocks.name}."
        rest = full_precision(
            making.target, model, layers, lambda name: not name.startswith(inside)
        )
        packed = quantized(self._outside)
        count = sum((Count(**note["count"]) for note in self._notes), Count.of(packed, rest))
        rest += packed
        some_scattered = any(note["scattered"] for note in self._notes)
        kept = {layer: said for note in self._notes for layer, said in note["operators"].items()}
        config = config_json(
            making.target, model, layers, making.scheme, some_scattered, making.method, kept
        )
        notes = [*self._notes, self._write(self._shards[-1], rest)]
        with writing(making.target, self._needed):
            placed = {name: note["file"] for note in notes for name in note["tensors"]}
            total = sum(note["tensor_bytes"] for note in notes)
            # The name of the index stops other readers; shards were named before it was known
            # whether there are operators.
            write_index(self._folder, stem_of(making.scheme, bool(kept)), placed, total)
            copied = tokenizer_to_copy(making.target, making.tokenizer)
            write_other_files(self._folder, config, model, copied)
            scheme, method = making.scheme, making.method
            content = content_of(model, layers, scheme, some_scattered, method, count, bool(kept))
            write_card(self._folder, content, making.origin)
            known = {n["file"]: {key: n[key] for key in ("bytes", "sha256")} for n in notes}
            publish(self._folder, making.target.absolute(), known)

    def _take_over(self) -> None:
        """Count the blocks that are finished and intact; remove everything after them."""
        known = _read_json(self._making.folder / _KEY)
        if known.get("key") != self._making.key:
            for leaving in (_ARTIFACT, _BLOCKS):
                shutil.rmtree(self._making.folder / leaving, ignore_errors=True)
        for made in (_ARTIFACT, _BLOCKS):
            (self._making.folder / made).mkdir(exist_ok=True)
        _write_json(
            self._making.folder / _KEY,
            {"key": self._making.key, "identity": dict(self._making.identity)},
        )
        for index in range(len(self._source.blocks)):
            note = _read_json(self._note_file(index))
            if not note or not _is_whole(self._folder / note["file"], note):
                break
            self._notes.append(note)
        kept = {note["file"] for note in self._notes}
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()
        for index in range(self.finished, len(self._source.blocks)):
            self._note_file(index).unlink(missing_ok=True)

    def _note_file(self, index: int) -> Path:
        return note_file(self._making.folder, index)

    def _read(self, note: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of a finished block by their names in the model."""
        stored = load_file(self._folder / note["file"])
        return {self._names.to_model(name): tensor for name, tensor in stored.items()}

    def _write(self, name: str, entries: list[Entry]) -> dict[str, Any]:
        """Write a shard to disk; return its notes."""
        path = self._folder / name
        entries = as_stored(entries, self._names)
        with writing(self._making.target, self._needed):
            write_shard(path, entries)
            sync(path)
            return {
                "file": name,
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
                "tensors": [entry.name for entry in entries],
                "tensor_bytes": sum(entry.nbytes for entry in entries),
            }


@contextlib.contextmanager
def partial_artifact(making: Making, source: BlockSource) -> Iterator[PartialArtifact]:
    """Open the working folder of an artifact, with the blocks that an earlier run finished.

    If the block ends without an error, the artifact is in place; otherwise finished blocks stay for
    the next run with the same key. Raises ArtifactError if another process is making the same
    artifact, if target is something other than an artifact, or if the disk is too small.
    """
    # Raise errors of config.json before the work, not after it.
    config_json(making.target, source.model, [], making.scheme, False, making.method, {})
    copied = tokenizer_to_copy(making.target, making.tokenizer)
    needed = artifact_bytes(source, making.scheme) + sum(path.stat().st_size for path in copied)
    with writing(making.target, needed):
        making.folder.mkdir(parents=True, exist_ok=True)
        present = sum(path.stat().st_size for path in making.folder.glob(f"{_ARTIFACT}/*"))
        make_room(making.target.absolute(), max(0, needed - present))
    with _locked(making):
        with writing(making.target, needed):
            partial = PartialArtifact(making, source, needed)
        yield partial
        partial.complete()
        shutil.rmtree(making.folder, ignore_errors=True)


def artifact_bytes(source: BlockSource, scheme: AnyScheme) -> int:
    """Return the artifact's size: packed layers, other tensors in the model's dtype, and slack."""
    total = SLACK_BYTES
    packed: set[str] = set()
    for name, module in named_layers(source.blocks).items():
        outputs, inputs = weight_matrix(module).shape
        packed.add(f"{name}.weight")
        own = scheme.of(name)
        if isinstance(own, Budget):
            total += own.most_bytes(outputs, inputs)
        else:
            total += packed_bytes(own, inputs, outputs, g_idx=True)
    if scheme.embeddings is not None:
        name, table = find_embeddings(source.model)
        packed.add(f"{name}.weight")
        shape = table.embedding_dim, table.num_embeddings
        total += packed_bytes(scheme.embeddings, *shape, g_idx=True)
    if scheme.head is not None and not serves_head(source.model, scheme):
        name, module = find_head(source.model)
        packed.add(f"{name}.weight")  # a tied one is stored under the name of the embedding
        total += packed_bytes(scheme.head, module.in_features, module.out_features, g_idx=True)
    return total + sum(_plain(source.model, packed))


def _factored(tensors: Mapping[str, Tensor], scheme: Budget, layer: LayerResult) -> FactoredWeight:
    """Return a weight of a finished block from the block's tensors."""
    form = next(
        each for each in forms().values() if f"{layer.name}.{each.name}.{each.first}" in tensors
    )
    held = {name: tensors[f"{layer.name}.{form.name}.{name}"] for name in form.tensors}
    return FactoredWeight(form, held, scheme)


def _plain(model: PreTrainedModel, packed: set[str]) -> Iterator[int]:
    """Yield the bytes of the tensors that are not packed; tied ones once."""
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in packed and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor.numel() * tensor.element_size()


@functools.lru_cache(maxsize=1)
def code_hash() -> str:
    """Return the sha256 of the sources that determine what a quantization computes."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in ("quant", "cuda_ext"):
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                digest.update(f"{path.relative_to(root)} {sha256(path)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(making: Making) -> Iterator[None]:
    """Hold the lock of the working folder; the system releases it when the process dies."""
    with open(making.folder / "lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"{making.target} is being made by another process (it holds {handle.name}); wait "
                "for it to end, or choose another folder."
            ) from error
        yield


def _copied(entry: Entry) -> Entry:
    """Return the entry with its values copied to the host now."""
    tensor = entry.make().to("cpu")
    return dataclasses.replace(entry, make=lambda: tensor)


def _is_whole(path: Path, note: Mapping[str, Any]) -> bool:
    return (
        path.is_file() and path.stat().st_size == note["bytes"] and sha256(path) == note["sha256"]
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of the working folder; {} if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file atomically."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)
