"""Split the blocks of a model among devices by their bytes; nothing here imports torch.

Every device has adjacent blocks, so that hidden states cross from one to the next once. The first
has the embeddings, too, and the last what comes after the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from quant.errors import ModelStructureError, NotEnoughMemory

GIB = 2**30
MARGIN = 0.02  # share of memory that stays free: allocators round up, kernels need workspaces


@dataclass(frozen=True)
class Parts:
    """Bytes of a model: before its blocks, of every block in order, and after the blocks.

    A head that is tied to the embeddings is one matrix with them, and lies where they do.
    """

    first: int
    blocks: tuple[int, ...]
    last: int

    @property
    def all(self) -> int:
        return self.first + sum(self.blocks) + self.last

    def beside(self, block: int) -> Parts:
        """The same with `block` more bytes for every block: its keys and values."""
        return Parts(self.first, tuple(each + block for each in self.blocks), self.last)


@dataclass(frozen=True)
class Room:
    """A device, by torch's name for it, and the bytes that may be used on it; None: not known."""

    device: str
    free: int | None = None


@dataclass(frozen=True)
class Spread:
    """Where the parts of a model lie.

    blocks   dotted name of its list of blocks.
    devices  in the order of the blocks; the first is home: tokens go in there, and logits come out.
    counts   blocks on each device.
    head     dotted name of the head that lies on the last device; None for one that is tied to the
             embeddings and lies with them.
    """

    blocks: str
    devices: tuple[str, ...]
    counts: tuple[int, ...]
    head: str | None

    @property
    def home(self) -> str:
        return self.devices[0]

    def of_block(self, index: int) -> str:
        """The device of block `index`."""
        ends = accumulate(self.counts)
        return next(d for d, end in zip(self.devices, ends, strict=True) if index < end)

    def of(self, name: str) -> str:
        """The device of a module or tensor by its dotted name in the model."""
        index = block_of(name, self.blocks)
        if index is not None:
            return self.of_block(index)
        if self.head is not None and f"{name}.".startswith(f"{self.head}."):
            return self.devices[-1]
        return self.home

    def said(self) -> str:
        """In words: "cuda:0: embeddings, blocks 0 to 47; cuda:1: blocks 48 to 95, head"."""
        ends = list(accumulate(self.counts))
        parts = []
        for device, count, end in zip(self.devices, self.counts, ends, strict=True):
            said = f"blocks {end - count} to {end - 1}" if count > 1 else f"block {end - 1}"
            if device == self.home:
                said = f"embeddings, {'head, ' if self.head is None else ''}{said}"
            if device == self.devices[-1] and self.head is not None:
                said = f"{said}, head"
            parts.append(f"{device}: {said}")
        return "; ".join(parts)


def block_of(name: str, blocks: str) -> int | None:
    """The number of the block that a module or tensor belongs to; None for one outside `blocks`."""
    inside = name.removeprefix(f"{blocks}.")
    return None if inside == name else int(inside.partition(".")[0])


def split(parts: Parts, rooms: Sequence[Room], what: str) -> tuple[int, ...]:
    """How many blocks each device has, one at least: the fullest is as empty as it can be.

    Devices of which not all have known room count as equal. what is the model's name in errors.

    Raises NotEnoughMemory, with the bytes of every device, if that does not fit, and
    ModelStructureError for more devices than blocks.
    """
    count = len(parts.blocks)
    if len(rooms) > count:
        raise ModelStructureError(
            f"{what} has {count} blocks, fewer than the {len(rooms)} devices it is to lie on: use "
            f"runtime.devices={count} or fewer."
        )
    counts = _fewest_on_the_fullest(parts, tuple(rooms))
    held = held_by(parts, counts)
    if any(room.free is not None and n > room.free for n, room in zip(held, rooms, strict=True)):
        raise NotEnoughMemory(_refusal(parts, rooms, held, what))
    return counts


def fewest(parts: Parts, rooms: Sequence[Room], what: str) -> int | None:
    """How many of the devices, from the first on, are enough; None if all together are not."""
    for count in range(1, min(len(rooms), len(parts.blocks)) + 1):
        try:
            split(parts, rooms[:count], what)
        except NotEnoughMemory:
            continue
        return count
    return None


@lru_cache(maxsize=256)  # the plans of a sweep ask for few models
def _fewest_on_the_fullest(parts: Parts, rooms: tuple[Room, ...]) -> tuple[int, ...]:
    """By dynamic programming over devices and the number of blocks up to each of them."""
    total = [0, *accumulate(parts.blocks)]
    known = all(room.free for room in rooms)
    last = len(rooms) - 1
    # For each number of blocks so far: fullest device, sum of squares (of splits with an equally
    # full device the most even one), and the counts.
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
    for place, room in enumerate(rooms):
        free = float(room.free or 1) if known else 1.0
        beside = (parts.first if place == 0 else 0) + (parts.last if place == last else 0)
        found: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for start, (worst, squares, counts) in best.items():
            ends = range(start + 1, len(total) - last + place)
            for end in [len(total) - 1] if place == last else ends:
                full = (beside + total[end] - total[start]) / free
                tried = (max(worst, full), squares + full**2, (*counts, end - start))
                if end not in found or tried < found[end]:
                    found[end] = tried
        best = found
    return best[len(parts.blocks)][2]


def held_by(parts: Parts, counts: Sequence[int]) -> list[int]:
    """Bytes on each device."""
    ends = list(accumulate(counts))
    held = [sum(parts.blocks[e - n : e]) for n, e in zip(counts, ends, strict=True)]
    held[0] += parts.first
    held[-1] += parts.last
    return held


def _refusal(parts: Parts, rooms: Sequence[Room], held: Sequence[int], what: str) -> str:
    each = ", ".join(
        f"{room.device} {n / GIB:.2f} of {_said(room.free)}"
        for room, n in zip(rooms, held, strict=True)
    )
    return (
        f"{what} needs {parts.all / GIB:.2f} GiB, and spread over {len(rooms)} "
        f"device{'s' * (len(rooms) > 1)} as evenly as its blocks allow it does not fit "
        f"({each} GiB free): use more devices, fewer bits or a smaller model."
    )


def _said(free: int | None) -> str:
    return "unknown" if free is None else f"{free / GIB:.2f}"
