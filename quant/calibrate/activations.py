"""Stores for the hidden states between two blocks: on the device, in host memory or on disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.memory.heaps import own_copy
from quant.memory.limits import PLACES


class Activations(Protocol):
    """Hidden states, indexed by batch number; a plain list implements it."""

    def append(self, hidden: Tensor, /) -> None:
        """Store the hidden states of the next batch."""

    def __getitem__(self, batch: int, /) -> Tensor: ...

    def __setitem__(self, batch: int, hidden: Tensor, /) -> None: ...

    def __len__(self) -> int: ...


@contextlib.contextmanager
def activation_store(
    place: str, device: torch.device, folder: Path | None
) -> Iterator[Activations]:
    """Yield an empty store at `place`, one of PLACES; it returns tensors on `device`, bit for bit.

    folder is the directory for files of place="disk"; it is created here and removed at the end.
    Raises QuantizationError if `device` does not have that place.
    """
    if place not in PLACES or (place == "cuda" and device.type != "cuda"):
        raise QuantizationError(
            f"activations={place} is not possible for blocks on {device}; choose one of "
            f"{', '.join(p for p in PLACES if p != 'cuda' or device.type == 'cuda')}."
        )
    if place == "disk":
        if folder is None:
            raise QuantizationError("activations=disk needs a folder for the files; name one.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield _OnDisk(folder, device)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    elif place == "cpu":
        yield _InHostMemory(device)
    else:
        yield []


class _InHostMemory:
    """Copies in host memory; later values of a batch reuse the memory of its copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: list[Tensor] = []

    def append(self, hidden: Tensor) -> None:
        self._held.append(own_copy(hidden))

    def __getitem__(self, batch: int) -> Tensor:
        return self._held[batch].to(self._device)

    def __setitem__(self, batch: int, hidden: Tensor) -> None:
        held = self._held[batch]
        if (held.shape, held.dtype) == (hidden.shape, hidden.dtype):
            held.copy_(hidden)
        else:
            self._held[batch] = own_copy(hidden)

    def __len__(self) -> int:
        return len(self._held)


class _OnDisk:
    """One file per batch, with plain reads and writes.

    Pages of a memory-mapped file would count as memory of the process for as long as the system
    keeps them. Files are not synced: a quantization that was killed computes them again
    (quant.calibrate.stream).
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []

    def append(self, hidden: Tensor) -> None:
        self._kinds.append((hidden.shape, hidden.dtype))
        self._write(len(self._kinds) - 1, hidden)

    def __getitem__(self, batch: int) -> Tensor:
        shape, dtype = self._kinds[batch]
        hidden = torch.empty(shape, dtype=dtype)
        view = _bytes(hidden)
        with open(self._file(batch), "rb", buffering=0) as file:
            done = 0
            while done < len(view):  # one read gives at most 2 GiB
                count = file.readinto(view[done:])
                if not count:
                    raise QuantizationError(
                        f"{file.name} was cut short while it was in use: {done} of {len(view)} "
                        "bytes; leave the working folder alone and run again."
                    )
                done += count
        return hidden.to(self._device)

    def __setitem__(self, batch: int, hidden: Tensor) -> None:
        if (hidden.shape, hidden.dtype) != self._kinds[batch]:
            raise ValueError(f"batch {batch} was {self._kinds[batch]}, not {hidden.shape}.")
        self._write(batch, hidden)

    def __len__(self) -> int:
        return len(self._kinds)

    def _file(self, batch: int) -> Path:
        return self._folder / f"{batch:06}"

    def _write(self, batch: int, hidden: Tensor) -> None:
        with open(self._file(batch), "wb") as file:
            file.write(_bytes(hidden.detach().to("cpu").contiguous()))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
