"""What streamed GPTQ costs: operations and elements of every stage, and seconds at given rates.

Counted for one block and `tokens` calibration tokens in windows of `window`, as the code works. A
stage is a sum of terms, and every term has a rate:

  read      disk: bytes of a block, hidden behind the work on the block before it;
            attach: bytes copied to the device
  hessian   product: 2 operations a weight and token up to the block's last layer, and 2 a token for
            the strips of every distinct input's Hessian that lie on and above the diagonal (56 % of
            n^2); attention; element: activations read or written, and sums of strips
  factor    factor: operations of the block columns that make R of n inputs (n^3 / 3 and some);
            weight: copies, dequantized values and their distance, by the weight
  loop      lookback: the products that bring a panel up to date and invert its triangle;
            panel: panels of 128 columns: a fixed cost, the column loop included
  forward   product, attention, element: the quantized block once
  write     packed: weights packed and hashed, on the host; layer: a fixed cost of each layer;
            stored: bytes put on the disk. By a thread of its own, hidden behind the block after it

An operation is a multiplication or an addition. The column loop takes 128 multiply-adds a weight in
the first-level cache; measured it cannot be told from the fixed cost of a panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quant.tiling import BLOCKS, PANEL, strips

STAGES = ("read", "hessian", "factor", "loop", "forward", "write")
# Stage -> term -> how much of it.
Work = dict[str, dict[str, float]]


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
    block: BlockShape,
    tokens: int,
    window: int,
    itemsize: int,
    bits: float,
    batch_tokens: int = 2048,
    device: str = "cpu",
) -> Work:
    """The terms of every stage of one block; itemsize in bytes, bits those of a packed weight."""
    # Scores and their sum over values, of half of the pairs: what comes later is masked.
    attention = 2.0 * tokens * window * block.hidden
    ends = [inputs + sum(outputs) for inputs, outputs in block.groups]
    unused = sum(block.groups[-1][1])  # outputs of the last layer, which the first pass leaves out
    halves = [gram_elements(inputs) for inputs, _ in block.groups]
    batches = -(-tokens // max(window, batch_tokens))
    transposed = tokens * sum(inputs for inputs, _ in block.groups)
    solved = [(inputs, rows) for inputs, outputs in block.groups for rows in outputs]
    weights = float(block.weights)
    return {
        "read": {"disk": weights * itemsize, "attach": weights * itemsize},
        "hessian": {
            "product": 2.0 * tokens * (weights - block.last + sum(halves)),
            "attention": attention,
            "element": tokens * (sum(ends) - unused) + transposed + 2.0 * batches * sum(halves),
        },
        "factor": {
            "factor": sum(root_operations(inputs, BLOCKS[device]) for inputs, _ in block.groups),
            "weight": weights,
        },
        "loop": {
            "lookback": sum(lookback_operations(*layer) for layer in solved),
            "panel": float(sum(-(-inputs // PANEL) for inputs, _ in solved)),
        },
        "forward": {
            "product": 2.0 * tokens * weights,
            "attention": attention,
            "element": float(tokens * sum(ends)),
        },
        "write": {"packed": weights, "layer": float(len(solved)), "stored": weights * bits / 8},
    }


def gram_elements(inputs: int) -> int:
    """Entries of a Hessian that are summed: strips of rows that begin at the diagonal."""
    return sum((end - start) * (inputs - start) for start, end in strips(inputs))


def root_operations(inputs: int, block: int) -> float:
    """Operations of quant.hessian.blocked_root: n^3 / 3 for many block columns."""
    total = 0.0
    for end in range(inputs, 0, -block):
        start = max(end - block, 0)
        width = end - start
        total += 2 * end * width * (inputs - end)  # what the finished columns take away
        total += 2 * width**3 / 3  # the diagonal block's root and inverse
        total += 2 * start * width**2  # what is above it, times the inverse
    return total


def lookback_operations(inputs: int, rows: int) -> float:
    """Operations of a column loop's products: rows n^2, n^2 128, and the triangles' inverses."""
    total = 0.0
    for start in range(0, inputs, PANEL):
        width = min(PANEL, inputs - start)
        total += 2 * width * start * (width + rows) + width**3 / 3
    return total


def seconds(work_of_block: Work, rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each stage of one block; the disk counts only beyond what it is hidden behind.

    "write" is what its own thread works, see `together`.
    """
    found = {
        stage: sum(amount / rates[term] for term, amount in terms.items() if term != "disk")
        for stage, terms in work_of_block.items()
    }
    waited = work_of_block["read"]["disk"] / rates["disk"] - together(found)
    return {**found, "read": found["read"] + max(0.0, waited)}


def together(stages: Mapping[str, float]) -> float:
    """Seconds from block to block: a block is written while all else of the next one is done."""
    return max(stages["write"], sum(stages.values()) - stages["write"])


def whole(stages: Mapping[str, float], blocks: int) -> float:
    """Seconds of all blocks: nothing hides the first one's work or the last one's writing."""
    return together(stages) * (blocks - 1) + sum(stages.values())


def activation_bytes(block: BlockShape, tokens: int, itemsize: int) -> int:
    """Hidden states between two blocks."""
    return tokens * block.hidden * itemsize
