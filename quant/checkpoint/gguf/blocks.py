"""Dequantize the most frequent types of blocks faster than the package `gguf`, to the same bits.

The package passes over whole tensors several times; these pass over a part that stays in the cache,
in one thread. Numbers are multiplied and added in the package's order, in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_PART = 1 << 18  # weights
_LOW = 15  # four bits


def half(raw: Tensor, at: int) -> Tensor:
    """A float16 number of every block (blocks x bytes) as float32, blocks x 1."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor, out: Tensor) -> None:
    """The lower four bits of all bytes, then the upper ones: out is twice as long as raw."""
    out[..., : raw.shape[-1]] = raw & _LOW
    out[..., raw.shape[-1] :] = raw >> 4


def _q4_0(raw: Tensor, out: Tensor) -> None:
    _nibbles(raw[:, 2:], out)
    out.sub_(8).mul_(half(raw, 0))


def _q4_1(raw: Tensor, out: Tensor) -> None:
    _nibbles(raw[:, 4:], out)
    out.mul_(half(raw, 0)).add_(half(raw, 2))


def _q8_0(raw: Tensor, out: Tensor) -> None:
    torch.mul(raw[:, 2:].view(torch.int8), half(raw, 0), out=out)


def numbers_of_k(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of scales and minima of the eight parts of Q4_K and Q5_K: uint8, blocks x 8 each.

    They have six bits, the last four of each in three places.
    """
    first, second, both = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scale = torch.cat([first & 63, (both & _LOW) | ((first >> 2) & 48)], 1)
    least = torch.cat([second & 63, (both >> 4) | ((second >> 2) & 48)], 1)
    return scale, least


def _q4_k(raw: Tensor, out: Tensor) -> None:
    """Eight groups of 32."""
    scale, least = numbers_of_k(raw)
    groups = out.view(-1, 8, 32)
    _nibbles(raw[:, 16:].view(-1, 4, 32), out.view(-1, 4, 64))
    groups.mul_((half(raw, 0) * scale)[..., None]).sub_((half(raw, 2) * least)[..., None])


def codes_of_q6_k(raw: Tensor) -> Tensor:
    """Codes of Q6_K, uint8, blocks x 256: four bits in one place, two in another."""
    low, high = raw[:, :128].view(-1, 2, 64), raw[:, 128:192].view(-1, 2, 1, 32)
    codes = torch.stack([low & _LOW, low >> 4], 2).view(-1, 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    codes |= ((high >> shifts) & 3) << 4
    return codes.view(-1, 256)


def _q6_k(raw: Tensor, out: Tensor) -> None:
    """Sixteen groups of 16."""
    codes = codes_of_q6_k(raw)
    scale = raw[:, 192:208].view(torch.int8) * half(raw, 208)
    torch.sub(codes.view(-1, 16, 16).float(), 32, out=out.view(-1, 16, 16))
    out.view(-1, 16, 16).mul_(scale[..., None])


_TYPES: Mapping[str, tuple[int, int, Callable[[Tensor, Tensor], None]]] = {
    "Q4_0": (32, 18, _q4_0),  # weights, bytes of a block
    "Q4_1": (32, 20, _q4_1),
    "Q8_0": (32, 34, _q8_0),
    "Q4_K": (256, 144, _q4_k),
    "Q6_K": (256, 210, _q6_k),
}


def dequantized(kind: str, raw: Any, columns: int) -> Tensor | None:
    """The values of rows of packed bytes (a NumPy array), float32, rows x columns.

    None for types that the package dequantizes.
    """
    if kind not in _TYPES:
        return None
    block, size, make = _TYPES[kind]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        stored = torch.from_numpy(raw).reshape(-1, size)
    out = torch.empty(len(stored), block)
    step = _PART // block
    with _one_thread():
        for first in range(0, len(stored), step):
            make(stored[first : first + step].contiguous(), out[first : first + step])
    return out.view(-1, columns)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context: PyTorch computes in this thread alone.

    Threads of so small a task wait for each other, on a busy machine fifty times longer than it
    takes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
