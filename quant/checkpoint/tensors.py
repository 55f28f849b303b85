"""Write safetensors files in shards, and read their tensors by name, memory-mapped."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quant.checkpoint.files import weight_files
from quant.checkpoint.folder import remake
from quant.errors import ArtifactError
from quant.memory.heaps import OWN, own_copy

STANDARD_STEM = "model"
INDEX_SUFFIX = ".safetensors.index.json"
_POINTER = b"version https://git-lfs."


@dataclass(frozen=True)
class Entry:
    """One tensor to write; its size is known before make() computes its values."""

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

    A shard has at least one tensor and otherwise at most max_shard_bytes. Its tensors are made when
    it is written, so that one shard at a time is in memory.
    """
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.nbytes for e in shards[-1]) + entry.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    names = shard_names(stem, len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_shard(folder / name, shard)
    if len(shards) > 1:
        placed = {e.name: name for name, shard in zip(names, shards, strict=True) for e in shard}
        write_index(folder, stem, placed, sum(entry.nbytes for entry in entries))


def shard_names(stem: str, count: int) -> list[str]:
    """Return the file names of `count` shards; a single file has no number."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def write_shard(path: Path, entries: list[Entry]) -> None:
    """Write tensors into one file."""
    tensors = {e.name: e.make().detach().to("cpu").contiguous() for e in entries}
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    # save_file makes a file that only its owner can read, so set the mode of a normal new file.
    path.chmod(mode)


def write_index(folder: Path, stem: str, placed: dict[str, str], total_bytes: int) -> None:
    """Write the index: which shard (file name) has each tensor."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": placed}
    path = folder / f"{stem}{INDEX_SUFFIX}"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class TensorReader:
    """The tensors of a folder by name; a context manager that keeps the files open and mapped.

    mapped=False uses plain reads instead. Every touched page of a memory-mapped file counts as
    resident memory of the process until the file is closed, so reading a mapped checkpoint block by
    block would seem to need memory for all of it (and does under a hard limit). advice is the next
    step at the end of errors.

    Raises ArtifactError if a file is missing, truncated or not a safetensors file, and if the index
    names a tensor that its file does not have.
    """

    def __init__(self, folder: Path, *, mapped: bool = True, advice: str | None = None) -> None:
        self.folder = folder
        self.advice = remake(folder) if advice is None else advice
        self._backend = "mmap" if mapped else "pread"
        self._files: dict[str, Any] = {}
        self._place: dict[str, str] = {}
        self._expected: Mapping[str, str] = {}
        self._index = ""
        self._stored: dict[str, str] = {}  # names in the files that `rename` changed
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            chosen = weight_files(self.folder)
            if chosen.pickled:
                raise ArtifactError(
                    f"{self.folder} holds {chosen.names[0]}, a pickle, which cannot be read tensor "
                    "by tensor; convert it once with `python -m quant.checkpoint.convert "
                    f"{self.folder} OUT` and use the folder OUT."
                )
            self._index, self._expected = chosen.index or "", chosen.placed
            for file in chosen.names:
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

    def rename(self, to_model: Callable[[str], str]) -> None:
        """Replace the tensor names by to_model(name) from now on."""
        renamed = {to_model(name): name for name in self._place}
        self._stored = {name: stored for name, stored in renamed.items() if name != stored}
        self._place = {name: self._place[stored] for name, stored in renamed.items()}

    def file_of(self, name: str) -> Path:
        """Return the file of a tensor."""
        return self.folder / self._place[name]

    def read(self, name: str) -> Tensor:
        """Return a tensor as a copy in its own memory, independent of the file."""
        found = self.mapped(name)
        small = found.numel() * found.itemsize < OWN
        return found if small and self._backend == "pread" else own_copy(found)

    def mapped(self, name: str) -> Tensor:
        """Return a tensor in the mapped file: values are read on access and must not be written."""
        result: Tensor = self._files[self._place[name]].get_tensor(self._stored.get(name, name))
        return result

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header of its file."""
        return tuple(self._slice(name).get_shape())

    def nbytes(self, name: str) -> int:
        """Return the size of a tensor, from the header of its file."""
        kind = str(self._slice(name).get_dtype())  # "F32", "U8", "F8_E4M3"; "BOOL" is a byte
        width = re.search(r"[0-9]+", kind)
        return math.prod(self.shape(name)) * (int(width[0]) if width else 8) // 8

    def row(self, name: str, index: int) -> Tensor:
        """Return tensor[index] along the first dimension, reading nothing else of it."""
        result: Tensor = self._slice(name)[index]
        return result

    def metadata(self) -> dict[str, str]:
        """Return what the headers of all files hold beside the tensors (`__metadata__`)."""
        found: dict[str, str] = {}
        for opened in self._files.values():
            found |= opened.metadata() or {}
        return found

    def _slice(self, name: str) -> Any:
        return self._files[self._place[name]].get_slice(self._stored.get(name, name))

    def _open(self, file: str) -> None:
        path = self.folder / file
        try:
            opened = self._stack.enter_context(safe_open(path, "pt", backend=self._backend))
            names = list(opened.keys())
        except (SafetensorError, OSError) as error:
            if path.is_file() and path.open("rb").read(len(_POINTER)) == _POINTER:
                raise ArtifactError(
                    f"{path} is a pointer of Git LFS, which stands for weights that were not "
                    f"fetched: run `git lfs pull` in {self.folder}."
                ) from error
            raise ArtifactError(
                f"{path} cannot be read: {error}. It was cut short or is damaged. {self.advice}"
            ) from error
        expected = [name for name, place in self._expected.items() if place == file]
        lacking = sorted(set(expected) - set(names))
        if lacking:
            raise ArtifactError(
                f"{path} does not contain {lacking[0]}, but {self._index} lists it. {self.advice}"
            )
        self._files[file] = opened
        self._place |= dict.fromkeys(names, file)
