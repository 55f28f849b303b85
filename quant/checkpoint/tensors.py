"""safetensors files of a Hugging Face folder: written in shards, read by name, memory-mapped."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant.checkpoint.folder import read_json, remake
from quant.errors import ArtifactError

STANDARD_STEM = "model"
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """One tensor to write: its size is known before its values are made."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path, entries: list[Entry], max_shard_bytes: int, stem: str = STANDARD_STEM
) -> None:
    """Write the tensors as `stem`.safetensors, or as numbered shards with an index.

    A shard holds at least one tensor and otherwise at most max_shard_bytes; its tensors are made
    when it is written, so that one shard at a time is in memory.
    """
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.nbytes for e in shards[-1]) + entry.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    names = [
        f"{stem}.safetensors"
        if len(shards) == 1
        else f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors"
        for i in range(len(shards))
    ]
    for name, shard in zip(names, shards, strict=True):
        tensors = {e.name: e.make().detach().to("cpu").contiguous() for e in shard}
        (folder / name).touch()
        mode = (folder / name).stat().st_mode
        save_file(tensors, folder / name, metadata={"format": "pt"})
        # save_file leaves a file that only its owner can read: give it the mode of any new file.
        (folder / name).chmod(mode)
    if len(shards) > 1:
        placed = zip(names, shards, strict=True)
        index = {
            "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
            "weight_map": {entry.name: name for name, shard in placed for entry in shard},
        }
        path = folder / f"{stem}{INDEX_SUFFIX}"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class TensorReader:
    """The tensors of a folder by name; a context manager that keeps its files open and mapped.

    mapped=False reads with plain reads instead: every page of a mapped file that was touched counts
    as resident memory of the process until the file is closed, so reading a checkpoint block by
    block would seem to (and under a hard limit does) need room for all of it.
    advice is the next step that errors end with.

    Raises ArtifactError when a file is missing, cut short or no safetensors file, and when the
    index names a tensor that its file does not hold.
    """

    def __init__(self, folder: Path, *, mapped: bool = True, advice: str | None = None) -> None:
        self.folder = folder
        self.advice = remake(folder) if advice is None else advice
        self._backend = "mmap" if mapped else "pread"
        self._files: dict[str, Any] = {}
        self._place: dict[str, str] = {}
        self._expected: dict[str, str] = {}
        self._index = ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            for file in self._file_names():
                self._open(file)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._files.clear()

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._place)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.folder / self._place[name]

    def read(self, name: str) -> Tensor:
        """The tensor, copied to memory of its own: the model does not depend on the file."""
        return self._files[self._place[name]].get_tensor(name).clone()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header of its file."""
        return tuple(self._files[self._place[name]].get_slice(name).get_shape())

    def _file_names(self) -> list[str]:
        indexes = sorted(self.folder.glob(f"*{INDEX_SUFFIX}"))
        if len(indexes) == 1:
            self._index = indexes[0].name
            mapping = read_json(indexes[0]).get("weight_map")
            if not isinstance(mapping, dict) or not mapping:
                raise ArtifactError(f"{indexes[0]} has no weight_map. {self.advice}")
            self._expected = mapping
            return sorted(set(mapping.values()))
        found = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if len(found) == 1:  # also AutoGPTQ's names, such as gptq_model-4bit-128g.safetensors
            return found
        raise ArtifactError(
            f"{self.folder} holds {len(found)} .safetensors files and {len(indexes)} indexes of "
            f"shards (*{INDEX_SUFFIX}); expected one file, or shards with one index. "
            f"{self.advice}"
        )

    def _open(self, file: str) -> None:
        path = self.folder / file
        if not path.is_file():
            raise ArtifactError(
                f"{path} is missing, but {self._index} names it. {self.advice}"
            )
        try:
            opened = self._stack.enter_context(safe_open(path, "pt", backend=self._backend))
            names = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{path} cannot be read: {error}. It was cut short or is damaged. "
                f"{self.advice}"
            ) from error
        expected = [name for name, place in self._expected.items() if place == file]
        lacking = sorted(set(expected) - set(names))
        if lacking:
            raise ArtifactError(
                f"{path} does not hold {lacking[0]}, but {self._index} says so. "
                f"{self.advice}"
            )
        self._files[file] = opened
        self._place |= dict.fromkeys(names, file)
