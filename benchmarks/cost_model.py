"""What streamed GPTQ costs: operations and bytes of every stage, and seconds at given rates.

All of it is counted for one block and `tokens` calibration tokens in windows of `window`:

  read      the bytes of a block; hidden behind the work on the block before it
  hessian   the block up to its last linear layer, attention, and 2 T n^2 for each distinct input
  factor    n^3 / 3 for each distinct input of n features (Cholesky)
  sweep     m n^2 for each layer of m outputs and n inputs
  forward   the quantized block once: 2 operations a weight and token, and attention
  write     the packed bytes of a block

An operation is a multiplication or an addition. Rates are effective: operations of this count a
second, whatever the algorithm does besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STAGES = ("read", "hessian", "factor", "sweep", "forward", "write")


@dataclass(frozen=True)
class BlockShape:
    """The linear layers of a block by distinct input: (inputs, outputs of the layers that read it).

    hidden  width of the residual stream; the last group holds the last layer of the block.
    """

    hidden: int
    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def weights(self) -> int:
        return sum(inputs * sum(outputs) for inputs, outputs in self.groups)

    @property
    def last(self) -> int:
        """Weights of the last group, which a pass that only collects inputs leaves out."""
        inputs, outputs = self.groups[-1]
        return inputs * sum(outputs)


@dataclass(frozen=True)
class Model:
    """A whole model: its block, how many, and the weights outside of them."""

    name: str
    block: BlockShape
    blocks: int
    outside: int


def opt(name: str, hidden: int, blocks: int, vocabulary: int = 50272) -> Model:
    """OPT: q k v, output, fc1, fc2; a tied table and learned positions."""
    groups = ((hidden, (hidden,) * 3), (hidden, (hidden,)), (hidden, (4 * hidden,)))
    block = BlockShape(hidden, (*groups, (4 * hidden, (hidden,))))
    return Model(name, block, blocks, (vocabulary + 2050) * hidden)


def bloom(name: str, hidden: int, blocks: int, vocabulary: int = 250880) -> Model:
    """BLOOM: q, k and v in one layer; a tied table."""
    groups = ((hidden, (3 * hidden,)), (hidden, (hidden,)), (hidden, (4 * hidden,)))
    return Model(
        name, BlockShape(hidden, (*groups, (4 * hidden, (hidden,)))), blocks, vocabulary * hidden
    )


def llama(
    name: str, hidden: int, inner: int, kv: int, blocks: int, vocabulary: int = 128256
) -> Model:
    """Llama: grouped queries (k and v of `kv` outputs), gate and up, down; a table and a head."""
    groups = ((hidden, (hidden, kv, kv)), (hidden, (hidden,)), (hidden, (inner, inner)))
    block = BlockShape(hidden, (*groups, (inner, (hidden,))))
    return Model(name, block, blocks, 2 * vocabulary * hidden)


OPT_175B = opt("OPT-175B", 12288, 96)
BLOOM_176B = bloom("BLOOM-176B", 14336, 70)
LLAMA_405B = llama("Llama-3.1-405B", 16384, 53248, 1024, 126)
OPT_13B = opt("OPT-13B", 5120, 40)


def work(
    block: BlockShape, tokens: int, window: int, itemsize: int, bits: float
) -> dict[str, float]:
    """Operations of hessian, factor, sweep and forward; bytes of read and write; of one block."""
    # Scores and their sum over values, of half of the pairs: what comes later is masked.
    attention = 2.0 * tokens * window * block.hidden
    hessians = sum(2.0 * tokens * inputs**2 for inputs, _ in block.groups)
    return {
        "read": float(block.weights * itemsize),
        "hessian": 2.0 * tokens * (block.weights - block.last) + attention + hessians,
        "factor": sum(inputs**3 / 3 for inputs, _ in block.groups),
        "sweep": float(sum(inputs**2 * sum(outputs) for inputs, outputs in block.groups)),
        "forward": 2.0 * tokens * block.weights + attention,
        "write": block.weights * bits / 8,
    }


def seconds(work_of_block: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each stage of one block; reading counts only beyond what it is hidden behind."""
    found = {stage: work_of_block[stage] / rates[stage] for stage in STAGES}
    busy = sum(found[stage] for stage in STAGES if stage != "read")
    return {**found, "read": max(0.0, found["read"] - busy)}


def activation_bytes(block: BlockShape, tokens: int, itemsize: int) -> int:
    """Hidden states between two blocks."""
    return tokens * block.hidden * itemsize
