"""A decode step of a model on the CPU as one operator call: bitsweep::step_*.

A step is described once, matrix by matrix, and holds the tensors that it was given. A call then
takes tokens through all layers inside one parallel region (csrc/step). Everything is float32 but
packed codes. Sums have a fixed order: the same bits with any number of threads, and for several
tokens in parts of any size above one; one token alone is within rounding of them.
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
    """Where a matrix stands in a layer; the head, in any layer, stands behind all.

    QUERY_KEY_VALUE is one matrix instead of three: query, key and value of the first head, then
    those of the next. GATE is there where the activation has one.
    """

    QUERY = 0
    KEY = 1
    VALUE = 2
    OUTPUT = 3
    GATE = 4
    UP = 5
    DOWN = 6
    QUERY_KEY_VALUE = 7
    HEAD = 8


class Activation(IntEnum):
    """What the matrix DOWN reads: SiLU(gate) * up, or ReLU or GELU of up alone."""

    SILU_GATE = 0
    RELU = 1
    GELU = 2
    GELU_TANH = 3


@dataclass(frozen=True)
class Norm:
    """weight [hidden] float32 of an RMSNorm; with a bias [hidden], of a LayerNorm."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call: products of matrices, attention, and what lies between them."""

    products: float
    attention: float
    rest: float


class Step:
    """One decoder: layers that add grouped attention of the normed input, then a feed-forward part
    of the normed sum.

    It knows positions by what is set: rotations, learned rows or slopes (ALiBi). Errors are
    RuntimeErrors naming the argument that does not fit; `run` raises one for a matrix that was not
    given.
    """

    def __init__(
        self,
        embedding: Tensor,
        norm: Norm,
        *,
        heads: int,
        kv_heads: int,
        width: int,
        positions: int,
        feed: int,
        activation: Activation,
        epsilon: float,
        scale: float,
        most_tokens: int,
        parallel: bool = False,
    ) -> None:
        """embedding [vocabulary, hidden]; norm: before the head; width: of a head; positions: of
        the cache; feed: inputs of DOWN; scale: of query times key; most_tokens: of one call;
        parallel: the feed-forward part reads the input of the layer, not its sum with attention.
        """
        packed.load()
        self._number = torch.ops.bitsweep.step_open(
            embedding, norm.weight, norm.bias, heads, kv_heads, width, positions, feed,
            int(activation), parallel, epsilon, scale, most_tokens,
        )  # fmt: skip
        weakref.finalize(self, torch.ops.bitsweep.step_close, self._number)
        self.most_tokens, self.width = most_tokens, width
        self._times = torch.zeros(3, dtype=torch.float64)

    def set_rotations(self, cosine: Tensor, sine: Tensor) -> None:
        """The first numbers of every query and key are turned by angles, [positions, as many]
        (RoPE, Su et al., arXiv 2104.09864).
        """
        torch.ops.bitsweep.step_rotate(self._number, cosine, sine)

    def set_learned_positions(self, rows: Tensor) -> None:
        """Rows [positions, hidden] that are added to those of the tokens."""
        torch.ops.bitsweep.step_learned(self._number, rows)

    def set_slopes(self, slopes: Tensor) -> None:
        """Slopes [heads]: slope * position of a key is added to its scores (ALiBi, Press et al.,
        arXiv 2108.12409).
        """
        torch.ops.bitsweep.step_slopes(self._number, slopes)

    def set_embedding_norm(self, norm: Norm) -> None:
        """A norm of the embeddings, before the first layer."""
        torch.ops.bitsweep.step_embedding_norm(self._number, norm.weight, norm.bias)

    def add_layer(
        self,
        norm: Norm,
        feed_norm: Norm,
        keys: Tensor,
        values: Tensor,
        *,
        query_norm: Tensor | None = None,
        key_norm: Tensor | None = None,
    ) -> None:
        """The next layer: norms before attention and before the feed-forward part; the buffers of
        its keys and values, [1, kv_heads, positions, width]; weights [width] of RMSNorms of the
        queries and the keys of every head.
        """
        torch.ops.bitsweep.step_layer(
            self._number, norm.weight, norm.bias, feed_norm.weight, feed_norm.bias,
            query_norm, key_norm, keys, values,
        )  # fmt: skip

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
        """A matrix [out, in] as it is: float32, or bfloat16 or float16 that stand for the same
        numbers.
        """
        torch.ops.bitsweep.step_dense(self._number, layer, int(place), weight, bias)

    def run(self, tokens: Tensor, position: int, logits: Tensor | None) -> None:
        """Take tokens int64 [1, n] at `position` and behind it; logits [1, vocabulary] of the last,
        None where nobody asks for them.

        Their keys and values are written to the buffers; those of positions before are read.
        """
        torch.ops.bitsweep.step_run(self._number, tokens, position, logits, self._times)

    def workspace_bytes(self, tokens: int) -> int:
        """Bytes of activations that a run of so many tokens takes and gives back."""
        taken: int = torch.ops.bitsweep.step_workspace(self._number, tokens)
        return taken

    @property
    def times(self) -> Times:
        """What the last `run` took."""
        return Times(*(self._times / 1e6).tolist())
