"""A decode step of a Llama-like model on the CPU as one operator call: bitsweep::step_*.

A step is described once, matrix by matrix, and holds the tensors that it was given. A call then
takes tokens through all layers inside one parallel region (csrc/step). Everything is float32 but
packed codes. Sums have a fixed order: the same bits with any number of threads, and for tokens one
by one or together.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from cuda_ext import packed
from cuda_ext.packed import Packed

WIDTH_STEP = 16  # a head's width is a multiple


class Place(IntEnum):
    """Where a matrix stands in a layer; the head, in any layer, stands behind all."""

    QUERY = 0
    KEY = 1
    VALUE = 2
    OUTPUT = 3
    GATE = 4
    UP = 5
    DOWN = 6
    HEAD = 7


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call: products of matrices, attention, and what lies between them."""

    products: float
    attention: float
    rest: float


class Step:
    """One decoder with RMSNorm, rotary positions, grouped attention and SwiGLU.

    Errors are RuntimeErrors naming the argument that does not fit; `run` raises one for a matrix
    that was not given.
    """

    def __init__(
        self,
        embedding: Tensor,
        norm: Tensor,
        cosine: Tensor,
        sine: Tensor,
        *,
        heads: int,
        kv_heads: int,
        feed: int,
        epsilon: float,
        scale: float,
        most_tokens: int,
    ) -> None:
        """embedding [vocabulary, hidden]; norm [hidden], before the head; cosine and sine
        [positions, width of a head]; feed: the width between gate and down; scale: of query times
        key; most_tokens: of one call.
        """
        packed.load()
        self._number = torch.ops.bitsweep.step_open(
            embedding, norm, cosine, sine, heads, kv_heads, feed, epsilon, scale, most_tokens
        )
        weakref.finalize(self, torch.ops.bitsweep.step_close, self._number)
        self.most_tokens = most_tokens
        self._times = torch.zeros(3, dtype=torch.float64)

    def add_layer(self, norm: Tensor, feed_norm: Tensor, keys: Tensor, values: Tensor) -> None:
        """The next layer: norms [hidden] before attention and before gate and up; the buffers of
        its keys and values, [1, kv_heads, positions, width].
        """
        torch.ops.bitsweep.step_layer(self._number, norm, feed_norm, keys, values)

    def set_packed(
        self,
        layer: int,
        place: Place,
        weight: Packed,
        *,
        bits: int,
        in_features: int,
        out_features: int,
        group_size: int | None,
        bias: Tensor | None = None,
    ) -> None:
        """A packed matrix (cuda_ext.packed)."""
        torch.ops.bitsweep.step_packed(
            self._number,
            layer,
            int(place),
            weight.tiles,
            weight.scales,
            weight.zeros,
            weight.negative,
            bias,
            bits,
            in_features,
            out_features,
            in_features if group_size is None else group_size,
        )

    def set_dense(
        self, layer: int, place: Place, weight: Tensor, bias: Tensor | None = None
    ) -> None:
        """A matrix [out, in] as it is: float32, or bfloat16 that stands for the same numbers."""
        torch.ops.bitsweep.step_dense(self._number, layer, int(place), weight, bias)

    def run(self, tokens: Tensor, position: int, logits: Tensor | None) -> None:
        """Take tokens int64 [1, n] at `position` and behind it; logits [1, vocabulary] of the last,
        None where nobody asks for them.

        Their keys and values are written to the buffers; those of positions before are read.
        """
        torch.ops.bitsweep.step_run(self._number, tokens, position, logits, self._times)

    @property
    def times(self) -> Times:
        """What the last `run` took."""
        return Times(*(self._times / 1e6).tolist())
